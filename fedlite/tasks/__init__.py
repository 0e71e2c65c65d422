"""What a model is trained for: its loss and its metrics."""

from fedlite.tasks.task import Classification, LanguageModel, Task

__all__ = ["Classification", "LanguageModel", "Task"]
