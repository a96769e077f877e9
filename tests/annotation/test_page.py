"""The annotator's page in a browser, by mouse, touch and keyboard: what is in the database is what people meant."""

import random
import re

import pytest

from onereward_jax.annotation.questions import BEST_WORST, GOOD_SAME_BAD, RATING
from tests.support.annotation_browser import (
    Annotator,
    Server,
    answer_best_worst,
    find_browser,
    open_browser,
    until,
    work,
)
from tests.support.annotation_data import PROMPTS, write_candidates

pytest.importorskip("playwright", reason="needs playwright")
pytestmark = pytest.mark.skipif(find_browser() is None, reason="needs Chromium, such as Debian's package chromium")


VOTES_KEPT = 'Object.keys(localStorage).filter((name) => name.startsWith("onereward.outbox.")).length'


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The server of each job, started when a test first asks for it."""
    started = {}

    def get(job: str) -> Server:
        if job not in started:
            folder = tmp_path_factory.mktemp(job)
            two = job == GOOD_SAME_BAD
            write_candidates(folder, 160, 2 if two else 4, ("base", "policy") if two else ())
            started[job] = Server(folder, job)
        return started[job]

    yield get
    for server in started.values():
        server.stop()


@pytest.fixture
def arrive(browser, servers):
    """Somebody signs in; at the end the database is compared with what all have meant."""
    people = []

    def sign_in(name: str, job: str = BEST_WORST, **context) -> Annotator:
        people.append(Annotator(browser, servers(job), name, **context))
        return people[-1].sign_in()

    yield sign_in
    for person in people:
        person.check()
        person.close()


# --------------------------------------------------------------------------------------------------------------- jobs


def test_13_items_of_best_and_worst_by_keys_alone(arrive):
    """Choices are changed, undone, and answers taken back after they were saved."""
    work(arrive("Ann"), 13, random.Random(0))  # each kind of slip at least twice


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "touch"])
def test_best_and_worst_by_pointer(arrive, touch):
    size = {"viewport": {"width": 768, "height": 1024}, "has_touch": True} if touch else {}
    person, rng = arrive("Ben" if touch else "Cas", **size), random.Random(1)
    for _ in range(3):
        for number, question in enumerate(person.questions(BEST_WORST)):
            best, worst = rng.sample(range(4), 2)
            names = [".same"]
            if number % 3 == 2:
                best = worst = None
            else:
                names = [f'[aria-label="Candidate {best + 1}: best"]', f'[aria-label="Candidate {worst + 1}: worst"]']
            for name in names:
                button = person.page.locator(name)
                assert min(button.bounding_box()[side] for side in ("width", "height")) >= 44
                button.tap() if touch else button.click()
            person.mean_best_worst(question, best, worst)
        person.next(key=False)
        person.other_item()


@pytest.mark.parametrize("by", ["keys", "mouse"])
def test_good_same_bad(arrive, by):
    person = arrive(f"Dee by {by}", GOOD_SAME_BAD)
    buttons = {"left": "Left is better", "same": "No difference 0", "right": "Right is better"}
    for verdict, key in (("left", "1"), ("same", "0"), ("right", "2"), ("left", "1")):
        person.press(key) if by == "keys" else person.button(buttons[verdict]).click()
        person.mean_verdict(*person.questions(GOOD_SAME_BAD), verdict)
        person.next(key=by == "keys")
        person.other_item()


@pytest.mark.parametrize("by", ["keys", "mouse"])
def test_rating(arrive, by):
    person, rng = arrive(f"Eve by {by}", RATING), random.Random(2)
    for question in person.questions(RATING):
        lowest, highest = question.scale
        for place in range(4):
            mark = rng.randint(lowest, highest)
            text = ("No", "Yes")[mark] if highest == 1 else f"{mark}"
            if by == "keys":
                person.press(text[0].lower())
            else:
                person.page.locator(f'[aria-label="Candidate {place + 1}, {question.label}: {text}"]').click()
            person.mean_mark(question, place, mark)
    person.next(key=by == "keys")
    person.other_item()


def test_two_at_once_get_no_item_twice(arrive):
    rng = random.Random(3)
    people = [arrive("Fay"), arrive("Gus")]
    for _ in range(4):
        for person in people:
            answer_best_worst(person, rng)
            person.next()
            person.other_item()
    first, second = ({record for _, record, *_ in person.meant} for person in people)
    assert len(first) == len(second) == 4
    assert not first & second


# ------------------------------------------------------------------------------------------------ what may go wrong


def test_a_reload_in_the_middle_loses_nothing(arrive):
    person = arrive("Hal")
    questions = person.questions(BEST_WORST)
    while len(questions) < 2:
        person.press("0")
        person.mean_best_worst(questions[0], None, None)
        person.next()
        person.other_item()
        questions = person.questions(BEST_WORST)
    person.press("2", "Shift+3", "4", "r")
    person.page.keyboard.type("the hand has 6 fingers: 1–0?")
    person.press("Enter", "d", "3", "ArrowRight", "ArrowDown", "Enter", "Escape")
    item = person.item
    person.page.reload()
    person.look()
    assert person.item == item
    person.press("Shift+1")
    person.mean_best_worst(questions[0], 1, 2)
    person.mean_best_worst(questions[1], 3, 0)
    for question in questions[2:]:
        person.press("0")
        person.mean_best_worst(question, None, None)
    person.next()
    last = person.server.answers("Hal")[-1]
    assert last.reason == "the hand has 6 fingers: 1–0?"
    assert last.points == ((person.order[2], 0.52, 0.52),)


def test_the_server_is_killed_and_no_vote_is_lost_or_doubled(browser, tmp_path):
    server, rng = Server(write_candidates(tmp_path, 12)), random.Random(4)
    person = Annotator(browser, server, "Ida").sign_in()
    try:
        answer_best_worst(person, rng)
        person.next()
        person.other_item()
        person.next_is_loaded()
        server.kill()
        for _ in range(2):  # the next item is in the browser already
            answer_best_worst(person, rng)
            person.press("Enter")
            person.page.locator("#alert:visible").wait_for()
            if len({record for _, record, *_ in person.meant}) == 2:
                person.other_item()
        assert person.page.locator("#status.good").count() == 0
        person.page.close()  # not even the page has to stay
        server.start()
        person.open_page().goto(server.url)
        person.saved()
        assert person.page.locator("#alert").is_hidden()
        person.other_item()
        answer_best_worst(person, rng)
        # Saved, but the page never heard of it.
        lost = []
        person.page.route("**/api/votes", lambda route: (lost.append(route.fetch().status), route.abort()), times=1)
        person.press("Enter")
        person.saved()
        assert lost == [200]
        person.check()
    finally:
        person.close()
        server.stop()


def test_while_the_server_cannot_store_the_page_says_so(arrive):
    person, rng = arrive("Jan"), random.Random(5)
    busy = {"status": 503, "json": {"error": "the disk is full"}}
    person.page.route("**/api/votes", lambda route: route.fulfill(**busy))
    answer_best_worst(person, rng)
    person.press("Enter")
    person.page.locator("#alert:visible").wait_for()
    person.page.unroute("**/api/votes")
    person.saved()
    assert person.page.locator("#alert").is_hidden()


@pytest.mark.parametrize("status", [403, 404, 409])
def test_a_page_of_a_proxy_is_no_answer_of_the_server(arrive, status):
    person = arrive(f"Pam {status}")
    page = {"status": status, "content_type": "text/html", "body": "<h1>Not here</h1>"}
    person.page.route("**/api/votes", lambda route: route.fulfill(**page))
    answer_best_worst(person, random.Random(7))
    person.press("Enter")
    person.page.locator("#alert:visible").wait_for()
    person.page.unroute("**/api/votes")
    person.saved()


def test_answers_wait_for_their_annotator_when_another_signs_in(arrive):
    person = arrive("Quin.5")
    person.context.route("**/api/votes", lambda route: route.abort())
    answer_best_worst(person, random.Random(8))
    person.press("Enter")
    person.page.locator("#alert:visible").wait_for()
    asked = person.context.request.post(f"{person.server.url}/api/sign-in", data={"name": "Quin"})  # of another tab
    assert asked.ok
    person.context.unroute("**/api/votes")
    person.page.locator("#who", has_text=re.compile("^Quin$")).wait_for()
    person.page.locator("#alert:visible", has_text="Quin.5").wait_for()
    person.look()
    assert person.server.answers("Quin") == []
    person.button("Sign out").click()
    person.page.locator("#sign-in-help", has_text="Quin.5").wait_for()
    person.page.keyboard.type("Quin.5")
    person.press("Enter")
    person.saved()


def test_sign_out_saves_first_and_ends_the_session_in_all_tabs(arrive):
    person = arrive("Rae")
    other = person.context.new_page()
    other.goto(person.server.url)
    other.locator("#item[data-item]").wait_for()
    assert person.page.locator("#who").inner_text() == "Rae"
    answer_best_worst(person, random.Random(9))
    person.context.route("**/api/votes", lambda route: route.abort())  # of either tab: both keep the answer
    person.press("Enter")
    person.page.locator("#alert:visible").wait_for()
    assert person.server.answers("Rae") == []
    person.context.unroute("**/api/votes")
    person.button("Sign out").click()
    for page in (person.page, other):
        page.bring_to_front()
        page.locator("#sign-in-value").wait_for()
        assert page.locator("#work").is_hidden()
    person.check()
    assert person.page.evaluate("async () => (await fetch('/api/me')).status") == 401


def test_tabs_keep_each_others_answers(arrive):
    person, rng = arrive("Sam"), random.Random(10)
    first = person.page
    first.route("**/api/votes", lambda route: route.abort())
    answer_best_worst(person, rng)
    person.press("Enter")
    first.locator("#alert:visible").wait_for()
    second = person.open_page()
    second.route("**/api/votes", lambda route: route.abort())
    second.goto(person.server.url)
    person.look()
    answer_best_worst(person, rng)
    person.press("Enter")
    until(second, lambda: second.evaluate(VOTES_KEPT) == 2)
    first.bring_to_front()  # a browser slows down the tabs that nobody sees
    first.unroute("**/api/votes")
    first.locator("#status.good").wait_for()
    assert second.evaluate(VOTES_KEPT) == 1
    first.close()
    second.close()
    person.open_page().goto(person.server.url)
    person.saved()


def test_an_image_that_does_not_come_is_asked_for_again(arrive):
    """It is broken only if the server says so: then the item can be skipped."""
    person, rng, failed = arrive("Tia"), random.Random(11), []
    images = "**/images/**"
    person.page.route(images, lambda route: (failed.append(route.request.url), route.abort()), times=8)
    for _ in range(2):  # the item after the next is loaded when this one is saved
        answer_best_worst(person, rng)
        person.next()
        person.other_item()
    assert len(failed) == 8
    gone = {"status": 404, "json": {"error": "there is no such image"}}
    person.page.route("**/images/*.0", lambda route: route.fulfill(**gone))
    answer_best_worst(person, rng)
    person.next()
    person.other_item()
    answer_best_worst(person, rng)
    person.next()
    person.page.locator(".broken").wait_for()
    broken = person.page.locator("#item").get_attribute("data-item")
    person.press("s", "Enter")
    person.page.locator(f'#item[data-item]:not([data-item="{broken}"])').wait_for()


def test_answers_taken_back_keep_reason_and_defects(arrive):
    """After a reload, which forgets what the page knew of them, and after another, which must not forget the drafts."""
    person, rng, items = arrive("Uma"), random.Random(12), []
    reason = person.page.locator("#reason")
    for number in range(3):
        answer_best_worst(person, rng)
        person.press("r")
        person.page.keyboard.type(f"reason {number}")
        person.press("Enter", "d", "Enter", "Escape")
        items.append(person.item)
        person.next()
        person.other_item()
    person.page.reload()
    person.look()
    for number in (2, 1, 0):
        person.press("z")
        person.other_item()
        assert person.item == items[number]
        assert reason.input_value() == f"reason {number}"
        assert person.page.locator(".marker").count() == 1
        person.press("r", "End")
        person.page.keyboard.type(" and more")
        person.press("Enter")
    person.page.reload()
    person.look()
    for _ in range(3):
        assert reason.input_value() == f"reason {items.index(person.item)} and more"
        person.next()
        person.other_item()
    answers = person.server.answers("Uma")
    assert {answer.reason for answer in answers} == {f"reason {number} and more" for number in range(3)}
    assert {len(answer.points) for answer in answers} == {1}


def test_prompts_are_text(arrive):
    person, rng = arrive("<b>Kim</b>"), random.Random(6)
    seen = set()
    while len(seen) < len(PROMPTS):
        prompt = person.page.locator("#prompt")
        assert prompt.inner_text() == PROMPTS[person.record % len(PROMPTS)].strip()
        assert prompt.locator("*").count() == 0
        assert prompt.bounding_box()["height"] < 60
        seen.add(prompt.inner_text())
        answer_best_worst(person, rng)
        person.next()
        person.other_item()
    assert person.page.title() == "Annotation"


# ------------------------------------------------------------------------------------------------------- looking at it


def test_all_images_move_in_step(arrive):
    person = arrive("Lea")
    page = person.page
    boxes = lambda: [
        node.evaluate("(node) => [node.style.transform, node.style.width, node.style.height]")
        for node in page.locator(".view > img").all()
    ]
    view = page.locator(".view").nth(2).bounding_box()
    middle = (view["x"] + view["width"] / 2, view["y"] + view["height"] / 2)
    fitted = boxes()
    page.mouse.move(*middle)
    page.mouse.wheel(0, -1000)
    page.locator(".stage.enlarged").wait_for()
    assert boxes() != fitted
    before = boxes()
    page.mouse.down()
    page.mouse.move(middle[0] - 40, middle[1] - 20, steps=4)
    page.mouse.up()
    until(page, lambda: boxes() != before)
    assert len({width for _, width, _ in boxes()}) == 1
    page.keyboard.press("p")
    page.locator("#zoom", has_text="100 %").wait_for()
    assert {tuple(box[1:]) for box in boxes()} == {("64px", "48px")}
    page.keyboard.press("f")
    until(page, lambda: boxes() == fitted)
    page.keyboard.down("Space")
    assert page.locator(".view > img.flipped").first.is_visible()
    page.keyboard.up("Space")
    assert page.locator(".view > img.flipped").first.is_hidden()


def test_defects_are_marked_and_removed(arrive):
    person = arrive("Max")
    view = person.page.locator(".pane", has_text="▲ Best").nth(1).locator(".view").bounding_box()
    person.button("Defect").click()
    for part in (0.4, 0.6):
        person.page.mouse.click(view["x"] + part * view["width"], view["y"] + view["height"] / 2)
    person.button("Defect 1 on Candidate 2: remove").click()
    person.button("Defect").click()
    for question in person.questions(BEST_WORST):
        person.press("0")
        person.mean_best_worst(question, None, None)
    person.next()
    [(candidate, x, y)] = person.server.answers("Max")[0].points
    assert candidate == person.order[1]
    assert x > 0.5
    assert y == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("job", [BEST_WORST, GOOD_SAME_BAD, RATING])
def test_nothing_is_cut_off_or_scrolls(arrive, job):
    page = arrive("Nan", job).page
    outside = """([width, height]) => [...document.querySelectorAll("#work button, .view, #reason")].filter((node) => {
      const { left, top, right, bottom } = node.getBoundingClientRect();
      return node.checkVisibility() && (left < 0 || top < 0 || right > width || bottom > height);
    }).length"""
    scrolls = "(node) => node.scrollHeight - node.clientHeight"
    for size in ((1280, 720), (768, 1024), (1024, 768)):
        page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
        until(page, lambda size=size: page.evaluate(outside, size) == 0)
        until(page, lambda: page.locator("#stage").evaluate(scrolls) <= 0)


def test_axe_finds_nothing_serious(arrive, browser, servers):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(page) -> None:
        found = axe.run(page).response["violations"]
        serious = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]
        assert serious == []

    for job in (BEST_WORST, GOOD_SAME_BAD, RATING):
        person = arrive("Oda", job)
        person.press("1", "2")
        check(person.page)
    person.press("?")
    person.page.locator("#help:visible").wait_for()
    check(person.page)
    person.page.goto(f"{person.server.url}/organiser")
    person.page.locator("#annotators tr").first.wait_for()
    check(person.page)
    stranger = Annotator(browser, servers(BEST_WORST), "nobody")
    stranger.page.goto(stranger.server.url)
    stranger.page.locator("#sign-in-value").wait_for()
    check(stranger.page)
    stranger.close()
