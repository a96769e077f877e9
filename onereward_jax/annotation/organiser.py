"""What the organiser sees: how far the annotators are, how fast, and how well they agree with themselves and others."""

import threading
import time
from collections.abc import Iterator
from typing import Any

from onereward_jax.annotation import agreement
from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.assign import Desk
from onereward_jax.annotation.pace import median_seconds, per_hour
from onereward_jax.annotation.store import answers_of

_LATEST = 20_000  # votes that agreement is measured on
_FRESH = 10.0  # seconds for which what was counted is shown again,
_SHARE = 0.05  # and longer where counting would take more than this share of the time
_NOTHING = {"self_agreement": None, "gold_right": None}


class Organiser:
    """Counts what is shown to the organiser, not more often than every few seconds."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._lock = threading.Lock()
        self._counted: dict[str, Any] = {}
        self._until = float("-inf")

    def overview(self) -> dict[str, Any]:
        """Return what `GET /api/organiser` answers."""
        with self._lock:
            started = time.monotonic()
            if started > self._until:
                self._counted = self._count()
                ended = time.monotonic()
                self._until = ended + max(_FRESH, (ended - started) / _SHARE)
            return self._counted

    def _count(self) -> dict[str, Any]:
        desk = self._desk
        found = agreement.summary(desk.store.iter_answers(desk.job, _LATEST), self._right_answers())
        attention = {one["name"]: {key: one[key] for key in _NOTHING} for one in found["annotators"]}
        annotators: list[dict[str, Any]] = []
        now = desk.store.now()  # who has stopped adds nothing to the pace
        for person in desk.store.people():
            if person.organiser:
                continue
            recent = desk.recent(person)
            known = {"name": person.name, "done": desk.done(person), "per_hour": per_hour(recent, now)}
            annotators.append(known | {"seconds_median": median_seconds(recent)} | attention.get(person.name, _NOTHING))
        done, total = desk.progress()
        paces = [one["per_hour"] for one in annotators if one["per_hour"] is not None]
        return {
            "job": desk.job,
            "annotators": annotators,
            "done": done,
            "total": total,
            "besides": max(0, sum(one["done"] for one in annotators) - done),
            "per_hour": round(sum(paces), 1) if paces else None,
            "agreement": found["agreement"],
        }

    def _right_answers(self) -> Iterator[Answer]:
        for place, choices in self._desk.gold.items():
            item = self._desk.items[place]
            common = {"record": item.name, "task": item.task, "prompt": item.prompt, "job": self._desk.job}
            yield from answers_of(choices, **common, annotator="", models=item.models)
