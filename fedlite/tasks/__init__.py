"""What a model is trained for: its loss and its metrics."""

from fedlite.tasks.metrics import Evaluation, Metric, across_clients
from fedlite.tasks.speech import Speech
from fedlite.tasks.task import Classification, LanguageModel, Scores, Task

__all__ = [
    "Classification",
    "Evaluation",
    "LanguageModel",
    "Metric",
    "Scores",
    "Speech",
    "Task",
    "across_clients",
]
