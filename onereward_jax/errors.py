"""Errors that end a command with one sentence instead of a traceback. Imports nothing of the project."""

import signal


class UserError(ValueError):
    """Something the user can put right; its text is one sentence: what is wrong and what to do."""


class Interrupted(SystemExit):
    """A run stopped by SIGTERM or SIGINT after saving its state; `code` is 128 + the signal's number.

    As a `SystemExit` it ends a plain Python script with that code and without a traceback.
    """

    def __init__(self, signal_number: int, step: int, workdir: str):
        super().__init__(128 + signal_number)
        name = signal.Signals(signal_number).name
        self.message = f"stopped by {name} at step {step}, saved in {workdir}: the same command goes on from there"

    def __str__(self) -> str:
        return self.message
