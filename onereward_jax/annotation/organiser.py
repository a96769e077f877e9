"""What the organiser sees: how far the annotators are, how fast, and how well they agree with themselves and others."""

import threading
import time
from collections import defaultdict
from collections.abc import Hashable
from typing import Any

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.assign import Desk
from onereward_jax.annotation.pace import median_seconds, per_hour

_FRESH = 10.0  # seconds for which what was counted is shown again


class Organiser:
    """Counts what is shown to the organiser, not more often than every few seconds."""

    def __init__(self, desk: Desk):
        self._desk = desk
        self._lock = threading.Lock()
        self._counted: dict[str, Any] = {}
        self._at = float("-inf")

    def overview(self) -> dict[str, Any]:
        """Return what `GET /api/organiser` answers."""
        with self._lock:
            if time.monotonic() - self._at > _FRESH:
                self._counted = self._count()
                self._at = time.monotonic()
            return self._counted

    def _count(self) -> dict[str, Any]:
        desk = self._desk
        attention = _attention(desk)
        annotators: list[dict[str, Any]] = []
        for person in desk.store.people():
            recent = desk.recent(person)
            if person.organiser:
                continue
            known = {"name": person.name, "done": desk.done(person), "per_hour": per_hour(recent)}
            annotators.append(known | {"seconds_median": median_seconds(recent)} | attention.get(person.name, _NOTHING))
        done, total = desk.progress()
        paces = [one["per_hour"] for one in annotators if one["per_hour"] is not None]
        overall = {"per_hour": round(sum(paces), 1) if paces else None}
        return {"job": desk.job, "annotators": annotators, "done": done, "total": total} | overall


_NOTHING = {"self_agreement": None, "gold_right": None}


def _attention(desk: Desk) -> dict[str, dict[str, float | None]]:
    """{annotator: the share of repeats answered as before, and that of gold items answered rightly}."""
    first: dict[tuple[str, Hashable], Hashable] = {}
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: {"self_agreement": [], "gold_right": []})
    again = []
    for answer in desk.store.iter_answers(desk.job, checked=True):
        if answer.kind == "plain":
            first[answer.annotator, _asked(answer)] = _given(answer)
        elif answer.kind == "repeat":
            again.append(answer)
        else:
            place = desk.items.place(answer.record)
            right = _right(desk.gold.get(place, []) if place is not None else [], answer)
            if right is not None:
                hits[answer.annotator]["gold_right"].append(right == _given(answer))
    for answer in again:
        before = first.get((answer.annotator, _asked(answer)))
        if before is not None:
            hits[answer.annotator]["self_agreement"].append(before == _given(answer))
    share = lambda values: round(sum(values) / len(values), 4) if values else None
    return {name: {kind: share(values) for kind, values in found.items()} for name, found in hits.items()}


def _asked(answer: Answer) -> Hashable:
    return answer.record, answer.question, answer.candidate


def _given(answer: Answer) -> Hashable:
    return answer.best, answer.worst, answer.verdict, answer.mark


def _right(choices: list[dict[str, Any]], answer: Answer) -> Hashable:
    """The right answer to the same question, in the form of `_given`; None if it isn't known."""
    for choice in choices:
        if choice["question"] == answer.question:
            mark = choice["marks"][answer.candidate] if "marks" in choice else None
            return choice.get("best"), choice.get("worst"), choice.get("verdict"), mark
    return None
