"""Lets people compare or rate candidates in a browser; their votes go to DIR/votes.sqlite.

    onereward annotate --data DIR                         choose best and worst: open http://127.0.0.1:8080
    onereward annotate --data DIR --job good_same_bad     two models, blind
    onereward annotate --data DIR --job rating            marks
    onereward annotate --data DIR --add_annotator ANN     prints a token, once; with --host every annotator needs one
    onereward annotate --data DIR --add_organiser         prints the organiser's token, for /organiser
    onereward annotate --data DIR --simulated 3           of scenes of the proving ground: votes by their truth

Stop it by Ctrl-C; the same command resumes. Needs the extra `annotate`.
"""

import argparse
import contextlib
import random
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from onereward_jax.annotation.questions import JOBS
from onereward_jax.cli.arguments import like, local_path, number, path, text
from onereward_jax.config.schema import RequestData, RewardFeedback

if TYPE_CHECKING:
    from onereward_jax.annotation.assign import Desk

ORGANISER = "organiser"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    share = number(float, at_least=0, at_most=0.5)
    parser.add_argument("--data", type=path, metavar="DIR", required=True, help="candidates, or preference data")
    parser.add_argument("--job", choices=JOBS, default=JOBS[0], help="what is asked, default best_worst")
    parser.add_argument("--port", type=number(int, at_least=0, at_most=65535), default=8080, help="0: any free one")
    parser.add_argument("--host", type=text, default="127.0.0.1", help="default 127.0.0.1, this machine alone")
    parser.add_argument("--public", type=text, metavar="URL", default="", help="address that a proxy gives the server")
    parser.add_argument("--votes", type=local_path, metavar="FILE", help="default DIR/votes.sqlite")
    parser.add_argument("--overlap", type=number(float, at_least=0, at_most=1), default=0.15, help="default 0.15")
    parser.add_argument(
        "--overlap_votes",
        type=number(int, at_least=1, at_most=1000),
        default=3,
        help="annotators who judge each of that share of the records, default 3",
    )
    parser.add_argument("--repeats", type=share, default=0.03, help="share of hidden repeats, default 0.03")
    parser.add_argument(
        "--repeat_gap",
        type=number(int, at_least=1, at_most=10_000),
        default=20,
        help="items between an item and its repeat, default 20",
    )
    parser.add_argument("--gold", type=local_path, metavar="FILE", help="right answers, JSON lines")
    parser.add_argument("--gold_share", type=share, default=0.02, help="share of gold items, default 0.02")
    parser.add_argument(
        "--return_after",
        type=number(float, at_least=1, at_most=1e6),
        default=1800.0,
        help="seconds after which an item without an answer goes to others, default 1800",
    )
    parser.add_argument("--bad_share", type=like(RequestData, "bad_share"), default=0.01, help="bad records to bear")
    parser.add_argument(
        "--cache_mib",
        type=number(int, at_least=16, at_most=2**20),
        default=1024,
        help="of images in memory, default 1024",
    )
    parser.add_argument(
        "--simulated",
        type=number(int, at_least=1, at_most=1000),
        metavar="N",
        help="simulated annotators, who answer all and end; no server",
    )
    parser.add_argument(
        "--seed", type=like(RewardFeedback, "seed"), default=0, help="of who gets what, and their errors, default 0"
    )
    parser.add_argument("--add_annotator", type=text, metavar="NAME", help="print a new token for an annotator")
    parser.add_argument("--add_organiser", action="store_true", help="print a new token for the organiser")


def run(args: argparse.Namespace) -> None:
    from onereward_jax import buckets
    from onereward_jax.annotation.store import FILE
    from onereward_jax.errors import UserError

    data = buckets.reading(args.data)
    if not data.is_dir():
        raise FileNotFoundError(2, "No such directory", str(data))
    if buckets.is_bucket(args.data) and not args.votes:
        raise UserError(f"votes can't lie in a bucket, as {args.data}: give a file of this machine by --votes")
    votes = Path(args.votes) if args.votes else data / FILE
    if args.add_annotator is not None or args.add_organiser:
        _add(args, votes)
    elif args.simulated is not None:
        _simulate(args, data, votes)
    else:
        _serve(args, data, votes)


def _add(args: argparse.Namespace, votes: Path) -> None:
    """Print the tokens of new people; only their digests are kept."""
    from onereward_jax.annotation.security import clean_name, digest, new_token
    from onereward_jax.annotation.store import Store
    from onereward_jax.errors import UserError

    wanted = [] if args.add_annotator is None else [(clean_name(args.add_annotator), False)]
    store = Store(votes)
    for name, organiser in wanted + [(ORGANISER, True)] * args.add_organiser:
        known, token = store.person(name), new_token()
        if known is not None and known.organiser != organiser:
            raise UserError(f"{name} is taken: choose another name")
        store.add_person(name, digest(token), organiser)
        print(f"{name}: {token}")
    store.close()


def _open_desk(args: argparse.Namespace, data: Path, votes: Path, rng: random.Random | None = None) -> "Desk":
    """Read the data and the right answers, then open or make the database.

    Args:
      rng: draws who gets what; by default nobody can tell what comes next.
    """
    from onereward_jax.annotation.assign import Desk, Rules
    from onereward_jax.annotation.gold import read_gold
    from onereward_jax.annotation.items import Items
    from onereward_jax.annotation.store import Store
    from onereward_jax.data.preferences.dataset import open_candidates

    items = Items(open_candidates(data), args.job, args.bad_share)
    gold = read_gold(Path(args.gold), items) if args.gold else {}
    rules = Rules(
        overlap=args.overlap,
        overlap_votes=args.overlap_votes,
        repeats=args.repeats,
        gold=args.gold_share,
        repeat_gap=args.repeat_gap,
        return_after=args.return_after,
    )
    return Desk(Store(votes), items, rules, gold, rng)


def _simulate(args: argparse.Namespace, data: Path, votes: Path) -> None:
    from onereward_jax.annotation import simulated

    desk = _open_desk(args, data, votes, random.Random(args.seed))
    try:
        count = simulated.vote(desk, args.simulated, args.seed)
    finally:
        desk.close()
        desk.store.close()
    print(f"{votes}: {count} votes of {args.simulated} simulated annotators on {len(desk.items)} records")


def _serve(args: argparse.Namespace, data: Path, votes: Path) -> None:
    from onereward_jax.annotation.images import ImageCache
    from onereward_jax.annotation.security import Site
    from onereward_jax.errors import UserError

    try:
        from onereward_jax.annotation.app import create_app
        from onereward_jax.annotation.serve import bind, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio", "h11"):
            raise
        raise UserError("annotating needs a web server: pip install 'onereward-jax[annotate]'") from None
    if args.public and not re.fullmatch(r"https?://[^/?#@\s]+/?", args.public):
        raise UserError(f"--public {args.public} is no address: write https://NAME, without a path")
    with contextlib.closing(bind(args.host, args.port)) as opened:  # before the data are read, which may take long
        desk = _open_desk(args, data, votes)
        site = Site(args.host, opened.getsockname()[1], args.public.rstrip("/"))
        cache = ImageCache(args.cache_mib << 20)
        host = socket.gethostname() if args.host in ("0.0.0.0", "::") else args.host  # no browser opens these
        host = f"[{host}]" if ":" in host else host
        print(f"{len(desk.items)} records; open {site.public or f'http://{host}:{site.port}'} in a browser", flush=True)
        try:
            serve(create_app(desk, cache, site), opened)
        finally:
            cache.close()
            desk.close()
            desk.store.close()
