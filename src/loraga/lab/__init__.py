"""The experiments: a model, a task, training, evaluation, figures. The library never imports this room."""
