"""The terms of the loss, and the objective that adds them up."""
