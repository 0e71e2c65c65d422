"""What a model is trained for: its loss and its metrics."""

from fedlite.tasks.task import Classification, LanguageModel, Scores, Task

__all__ = ["Classification", "LanguageModel", "Scores", "Task"]
