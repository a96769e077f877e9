"""The annotation server: an ASGI application on Starlette, with the database, the data and the pages behind it.

Bodies and answers are JSON (`Content-Type: application/json`); an error is `{"error": sentence}`. Candidates are
numbered by the places at which they are shown, from 0. Who is signed in is in a cookie that scripts can't read.

    POST /api/sign-in      {"name"} on loopback, else {"token"} -> {annotator, job, organiser}, and the cookie
    POST /api/sign-out     {} -> {}; the cookie is worth nothing then
    GET  /api/me           -> {annotator, job, organiser, needs_token, done, total, per_hour, seconds_per_item, today};
                           {error, needs_token, job} with 401 if nobody is signed in, 403 for the organiser
    POST /api/assignments  {"count": 2} -> {assignments: [A, ...], waiting, done, total}: the annotator's open ones in
                           order, new ones drawn up to count (at most 5); the same after a reload. If there are fewer,
                           `waiting` says whether more may come, when others give theirs back; if not, that was all
    POST /api/votes        {assignment, key, answers, reason, points, seconds} -> {saved: true, done, total} when it is
                           on the disk. `key` is any text of at most 64 characters that the page chooses for the vote:
                           sent again, it is answered alike and not counted again.
                           answers: one for each question: {question, best, worst} (both null: no difference),
                           {question, verdict: "left" | "same" | "right"} or {question, marks: [one a candidate]}.
                           reason (text), points ([{candidate, x, y}], x and y from 0 to 1) may be left out
    POST /api/undo         {} or {"assignment": the one answered last} -> {assignment: A, done, total}; with the
                           assignment, the same request sent twice takes back one answer. 409: nothing to take back
    POST /api/skip         {assignment} -> {done, total}: can't be judged; not asked again of this annotator
    GET  /images/...       PNG; 404 also if the file is damaged: offer to skip; 503 if the disk fails: ask again later
    GET  /api/organiser    -> {job, annotators: [{name, done, per_hour, seconds_median, self_agreement, gold_right}],
                           done, total, besides, per_hour, agreement: {question: alpha}}; null where there is nothing
                           to measure yet. done: of the total, which is wanted of the annotators so far; besides:
                           answers that don't count there, to repeats, gold items and records that had enough.
                           per_hour: in the last hour, or since the first vote in it; agreement and attention are
                           those of the latest 20,000 votes
    GET  /api/export       -> all answers, one JSON object a line, as `annotation.answer.Answer`
    GET  /  /organiser  /static/NAME    the pages

    A = {id, job, task, prompt, source: url | null, mask: url | null, candidates: [url, ...], questions: [Q, ...],
         previous: {answers, reason, points} | null}; the mask is white where the candidates were generated, as large
         as the source; previous: what was answered before it was taken back, in the form of a vote
    Q = {name, label, help, scale: [lowest, highest] | null}

    400 malformed; 401 not signed in; 403 from another site or a proxy, or not for you; 404 unknown; 408 too slow; 409
    answered already (by another key), skipped or taken back: go on with the next; 413 too long; 415 no JSON; 421 a name
    that is not the server's; 503 can't be stored or read now (`error` says why): nothing was half-saved, the same
    request may be sent again.

The kind of an item (plain, repeat, gold) is in no answer.
"""

import asyncio
import dataclasses
import itertools
import logging
import mimetypes
import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from onereward_jax.annotation import images, security
from onereward_jax.annotation.assign import Ballot, Desk
from onereward_jax.annotation.database import Unavailable
from onereward_jax.annotation.organiser import Organiser
from onereward_jax.annotation.pace import per_hour
from onereward_jax.annotation.requests import fields_of, in_thread, json_errors, unknown
from onereward_jax.annotation.security import Guard, Refused, Site
from onereward_jax.annotation.store import Assignment, Person
from onereward_jax.annotation.votes import lines_of
from onereward_jax.errors import UserError

PAGES = Path(__file__).with_name("pages")
AHEAD = 1  # assignments more than asked for: their images are made before anybody asks,
_UPCOMING = 32  # and then those of so many records that nobody has: whoever comes gets the first of these
_LINES = 1000  # answers in one piece of an export
_PLENTY = 50  # while so many records are left that others do without them
_CODE = re.compile(r"([\w-]{22})\.([sm]|\d)", re.ASCII)
_LOG = logging.getLogger("onereward.annotate")
_IMAGE_HEADERS = {"cache-control": f"private, max-age={86_400}, immutable"}


class Server:
    """The application's answers; one per desk."""

    def __init__(self, desk: Desk, cache: images.ImageCache, site: Site):
        self.desk, self.store, self.cache, self.site = desk, desk.store, cache, site
        self.organiser = Organiser(desk)
        self._prepared: dict[int, int] = {}  # annotator -> the latest assignment whose images were made ahead
        self.cookie = f"{'__Host-' if site.is_secure else ''}onereward-{site.port}"
        self.pages = {path.relative_to(PAGES).as_posix(): path.read_bytes() for path in _files(PAGES)}

    # ------------------------------------------------------------------------------------------------------ who it is

    def person(self, request: Request) -> Person:
        """Return who is signed in.

        Raises:
          Refused: nobody is.
        """
        secret = request.cookies.get(self.cookie, "")
        found = self.store.session(security.digest(secret), security.SESSION_SECONDS) if secret else None
        if found is None:
            raise Refused(401, "nobody is signed in")
        return found

    def annotator(self, request: Request) -> Person:
        person = self.person(request)
        if person.organiser:
            raise Refused(403, "the organiser does not annotate: sign in as an annotator")
        return person

    async def sign_in(self, request: Request) -> Response:
        given = await fields_of(request, "name", "token")

        def work() -> tuple[Person, str]:
            if given.get("token") is not None:
                person = security.person_of_token(self.store, given["token"])
                if person is None:
                    raise Refused(401, "this token is not known: check it, or ask for another")
            elif self.site.is_loopback:
                person = self.store.add_person(security.clean_name(given.get("name")))
                if person.organiser:
                    raise Refused(403, "this name is the organiser's: choose another")
            else:
                raise Refused(401, "sign in with your token")
            secret = security.new_token()
            self.store.add_session(security.digest(secret), person.id, security.SESSION_SECONDS)
            return person, secret

        person, secret = await in_thread(work)
        response = JSONResponse({"annotator": person.name, "job": self.desk.job, "organiser": person.organiser})
        response.set_cookie(
            self.cookie,
            secret,
            max_age=int(security.SESSION_SECONDS),
            httponly=True,
            samesite="strict",
            secure=self.site.is_secure,
        )
        return response

    async def sign_out(self, request: Request) -> Response:
        secret = request.cookies.get(self.cookie, "")
        await in_thread(lambda: self.store.end_session(security.digest(secret)))
        response = JSONResponse({})
        response.delete_cookie(self.cookie, httponly=True, samesite="strict", secure=self.site.is_secure)
        return response

    async def me(self, request: Request) -> Response:
        def work() -> dict[str, Any]:
            person = self.annotator(request)
            recent = self.desk.recent(person)
            seconds = sorted(seconds for _, seconds in recent)
            midnight = time.mktime((*time.localtime()[:3], 0, 0, 0, 0, 0, -1))
            return {
                "annotator": person.name,
                "job": self.desk.job,
                "organiser": False,
                "needs_token": not self.site.is_loopback,
                **self._progress(person),
                "per_hour": per_hour(recent, recent[-1][0]) if recent else None,
                "seconds_per_item": seconds[len(seconds) // 2] if seconds else None,
                "today": self.store.votes_since(person.id, midnight),
            }

        try:
            return JSONResponse(await in_thread(work))
        except Refused as refused:  # what the page asks first: nothing to log
            known = {"error": refused.reason, "needs_token": not self.site.is_loopback, "job": self.desk.job}
            return JSONResponse(known, refused.status)

    # --------------------------------------------------------------------------------------------------- assignments

    async def assignments(self, request: Request) -> Response:
        given = await fields_of(request, "count")
        count = given.get("count", 1)
        if type(count) is not int or not 1 <= count <= 5:
            raise UserError("count must be a whole number from 1 to 5")

        def work() -> dict[str, Any]:
            person = self.annotator(request)
            ahead = AHEAD if self.desk.left(person) > _PLENTY else 0
            drawn, waiting = self.desk.draw(person, count + ahead)
            before = self._prepared.get(person.id, 0)  # what was shown before is in the browser
            self._prepare([one for one in drawn if one.id > before])
            self._prepared[person.id] = max([before, *(one.id for one in drawn)])
            given = drawn[:count]
            waiting = waiting and len(given) < count
            described = [self._described(one) for one in given]
            return {"assignments": described, "waiting": waiting, **self._progress(person)}

        return JSONResponse(await in_thread(work))

    async def votes(self, request: Request) -> Response:
        given = await fields_of(request, "assignment", "key", "answers", "reason", "points", "seconds")
        ballot = Ballot(
            given.get("assignment"),
            given.get("key"),
            given.get("answers"),
            given.get("reason"),
            given.get("points"),
            given.get("seconds", 0.0),
        )

        def work() -> dict[str, Any]:
            person = self.annotator(request)
            self.desk.vote(person, ballot)
            return {"saved": True, **self._progress(person)}

        return JSONResponse(await in_thread(work))

    async def undo(self, request: Request) -> Response:
        given = await fields_of(request, "assignment")

        def work() -> dict[str, Any]:
            person = self.annotator(request)
            again = self.desk.undo(person, given.get("assignment"))
            return {"assignment": self._described(again), **self._progress(person)}

        return JSONResponse(await in_thread(work))

    async def skip(self, request: Request) -> Response:
        given = await fields_of(request, "assignment")

        def work() -> dict[str, Any]:
            person = self.annotator(request)
            self.desk.skip(person, given.get("assignment"))
            return self._progress(person)

        return JSONResponse(await in_thread(work))

    async def image(self, request: Request) -> Response:
        found = _CODE.fullmatch(request.path_params["code"])

        def assignment() -> Assignment:
            person = self.annotator(request)
            given = self.store.assignment(found[1]) if found else None
            if given is None or given.annotator != person.id:
                raise Refused(404, "there is no such image")
            return given

        given = await in_thread(assignment)
        assert found is not None
        name = _name_of(found[2], given)
        place = self.desk.items.place(given.record)
        if name is None or place is None:
            raise Refused(404, "there is no such image")
        try:
            content = await asyncio.wrap_future(self.cache.get((place, name), self._making(place, name)))
        except Unavailable:
            raise
        except (OSError, UserError) as error:
            self.desk.leave_out(given.record)
            _LOG.warning("record %r is left out: %s", given.record, error)
            raise Refused(404, "this image can't be shown: skip the item") from None
        return Response(content, media_type="image/png", headers=_IMAGE_HEADERS)

    def _making(self, place: int, name: str) -> Callable[[], bytes]:
        def make() -> bytes:
            content = self.desk.items.image(place, name)
            if name == "mask":
                return images.mask_as_png(content, name)
            return images.as_png(content, name, fast=self.site.is_loopback)

        return make

    def foresee(self) -> None:
        """Have the images made, while there is time, that somebody who comes now would be shown."""
        makers: dict[Hashable, Callable[[], bytes]] = {}
        for place in self.desk.upcoming(_UPCOMING):
            makers |= self._makers(place, range(len(self.desk.items[place].models)))
        self.cache.foresee(makers)

    def _prepare(self, given: Sequence[Assignment]) -> None:
        """Make the images of new assignments before they are asked for."""
        for one in given:
            place = self.desk.items.place(one.record)
            if place is not None:
                for key, make in self._makers(place, one.shown).items():
                    self.cache.prepare(key, make)
        if given:  # the next are others
            self.foresee()

    def _makers(self, place: int, candidates: Iterable[int]) -> dict[Hashable, Callable[[], bytes]]:
        """What makes the images of a record, in the order in which they are shown."""
        item = self.desk.items[place]
        names = ["image"] * item.has_source + ["mask"] * item.has_mask
        names += [f"candidates[{number}].image" for number in candidates]
        return {(place, name): self._making(place, name) for name in names}

    def _described(self, given: Assignment) -> dict[str, Any]:
        """An assignment as the page gets it: nothing tells its kind, its record or its candidates' order."""
        place = self.desk.items.place(given.record)
        assert place is not None
        item = self.desk.items[place]
        url = lambda slot: f"/images/{given.code}.{slot}"
        return {
            "id": given.code,
            "job": given.job,
            "task": item.task,
            "prompt": item.prompt,
            "source": url("s") if item.has_source else None,
            "mask": url("m") if item.has_mask else None,
            "candidates": [url(number) for number in range(len(given.shown))],
            "questions": [dataclasses.asdict(question) for question in item.questions(given.job)],
            "previous": self.desk.previous(given),
        }

    def _progress(self, person: Person) -> dict[str, Any]:
        return {"done": self.desk.done(person), "total": self.desk.expected(person)}

    # ----------------------------------------------------------------------------------------------------- organiser

    def _check_organiser(self, request: Request) -> None:
        if not self.site.is_loopback and not self.person(request).organiser:
            raise Refused(403, "this is for the organiser alone")

    async def overview(self, request: Request) -> Response:
        def work() -> dict[str, Any]:
            self._check_organiser(request)
            return self.organiser.overview()

        return JSONResponse(await in_thread(work))

    async def export(self, request: Request) -> Response:
        await in_thread(lambda: self._check_organiser(request))

        def lines() -> Iterator[str]:
            answers = self.store.iter_answers()
            while some := list(itertools.islice(answers, _LINES)):
                yield lines_of(some)

        headers = {"content-disposition": 'attachment; filename="answers.jsonl"'}
        return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)

    # --------------------------------------------------------------------------------------------------------- pages

    async def page(self, request: Request) -> Response:
        return self._static({"/": "index.html"}.get(request.url.path, "organiser.html"))

    async def static(self, request: Request) -> Response:
        return self._static(request.path_params["name"])

    def _static(self, name: str) -> Response:
        """Answer with one of the files that were read at the start: no name of a request reaches the file system."""
        if name not in self.pages:
            raise Refused(404, "there is no such page")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(self.pages[name], media_type=kind, headers={"cache-control": "no-cache"})


def create_app(desk: Desk, cache: images.ImageCache, site: Site) -> security.App:
    """Make the ASGI application; what it is given stays open when it ends."""
    server = Server(desk, cache, site)
    server.foresee()
    routes = [
        Route("/api/sign-in", json_errors(server.sign_in), methods=["POST"]),
        Route("/api/sign-out", json_errors(server.sign_out), methods=["POST"]),
        Route("/api/me", json_errors(server.me)),
        Route("/api/assignments", json_errors(server.assignments), methods=["POST"]),
        Route("/api/votes", json_errors(server.votes), methods=["POST"]),
        Route("/api/undo", json_errors(server.undo), methods=["POST"]),
        Route("/api/skip", json_errors(server.skip), methods=["POST"]),
        Route("/api/organiser", json_errors(server.overview)),
        Route("/api/export", json_errors(server.export)),
        Route("/images/{code}", json_errors(server.image)),
        Route("/static/{name:path}", json_errors(server.static)),
        Route("/", json_errors(server.page)),
        Route("/organiser", json_errors(server.page)),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown}), site)


def _name_of(slot: str, given: Assignment) -> str | None:
    """The image of the record that is shown at a slot: "s" the source, "m" the mask, a number a candidate."""
    if slot in ("s", "m"):
        return "image" if slot == "s" else "mask"
    number = int(slot)
    return f"candidates[{given.shown[number]}].image" if number < len(given.shown) else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
