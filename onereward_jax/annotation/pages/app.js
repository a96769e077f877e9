/** The annotator's page: signs in, then joins session, stage, questions, keys and what is told about saving and pace. */

import { ApiError, call } from "./api.js";
import { byId, element, setText } from "./dom.js";
import { actionOf, helpFor } from "./keys.js";
import { keptBy } from "./outbox.js";
import { Pace } from "./pace.js";
import { Questions } from "./questions.js";
import { Session } from "./session.js";
import { signIn } from "./sign_in.js";
import { Stage } from "./stage.js";
import { watch, write } from "./storage.js";

const TASKS = {
  image_fill: "Image fill", image_extend: "Image extend", object_removal: "Object removal", text_rendering: "Text",
};
const SIGNED_IN = "signed-in"; // where the tabs of a browser tell each other who is

class Page {
  constructor() {
    this.pace = new Pace();
    this.stage = new Stage({
      pointed: (candidate, x, y) => {
        if (!this.item.answers.addPoint(candidate, x, y)) this.say("That is as many marks as can be kept.");
        this.changed();
      },
      removed: (index) => {
        this.item.answers.removePoint(index);
        this.changed();
      },
      active: (candidate) => this.activate(candidate),
    });
    this.questions = new Questions(
      { questions: byId("questions"), help: byId("question-help"), choices: byId("choices") },
      {
        go: (index) => this.go(index),
        choose: (role, candidate) => this.answer((answers, question) => answers.choose(question, role, candidate)),
        verdict: (side) => this.answer((answers, question) => answers.verdict(question, side)),
        same: () => this.answer((answers, question) => answers.noDifference(question)),
        mark: (candidate, mark) => this.mark(candidate, mark),
      },
    );
    this.listen();
  }

  async open(me) {
    this.me = me;
    this.pace.show(me);
    this.fillHelp(me.job);
    setText(byId("who"), me.annotator);
    byId("who").title = `Signed in as ${me.annotator}`;
    this.lasting = false;
    byId("sign-in").hidden = true;
    byId("work").hidden = false;
    this.session?.close();
    this.session = new Session(me.annotator, {
      show: (item) => this.show(item),
      ahead: (ready) => (byId("item").dataset.ahead = ready ? "ready" : ""),
      empty: (waiting) => this.empty(waiting),
      loading: () => this.blank("Loading the next item…", ""),
      saving: (count) => this.say(count > 1 ? `Saving ${count}…` : "Saving…"),
      saved: (answer, left) => {
        this.pace.saved(answer);
        this.fine();
        this.say(left ? `Saving ${left}…` : "Saved ✓", !left);
      },
      problem: (text) => this.problem(text),
      fine: () => this.fine(),
      refused: (text) => this.problem(`An answer wasn't taken: ${text}`, true),
      held: (text) =>
        this.problem(`An answer wasn't taken: ${text}. It is kept in this browser: load the page again to send it again.`, true),
      signedOut: () => boot(this),
    });
    const others = keptBy().filter((name) => name !== me.annotator).join(", ");
    if (others) this.problem(`Answers of ${others} are kept in this browser until they sign in here again.`, true);
    await this.session.start();
  }

  // ---------------------------------------------------------------------------------------------------- what is told

  say(text, good = false) {
    setText(byId("status"), text);
    byId("status").classList.toggle("good", good);
  }

  /** `lasting`: said until the next answer, also when all else is well. */
  problem(text, lasting = false) {
    this.lasting = lasting;
    setText(byId("alert"), text);
    byId("alert").hidden = false;
    if (!byId("status").classList.contains("good")) this.say(""); // what is saved stays saved, whatever comes after
  }

  fine() {
    if (!this.lasting) byId("alert").hidden = true;
  }

  blank(title, text) {
    this.item = null;
    byId("item").hidden = true;
    byId("empty").hidden = false;
    setText(byId("empty-title"), title);
    setText(byId("empty-text"), text);
  }

  empty(waiting) {
    if (waiting) this.blank("Nothing to do right now", "Items that others hold may come back: this page looks again by itself.");
    else this.blank("All done", "Every item is answered. Thank you.");
  }

  // ---------------------------------------------------------------------------------------------------------- an item

  show(item) {
    this.item = item;
    byId("empty").hidden = true;
    byId("item").hidden = false;
    byId("item").dataset.item = item.id;
    const { task, prompt } = item.assignment;
    setText(byId("task"), TASKS[task] ?? task);
    setText(byId("prompt"), prompt || "(no prompt)");
    byId("prompt").classList.toggle("none", !prompt);
    byId("prompt").scrollTop = 0;
    byId("reason").value = item.answers.state.reason;
    this.questions.show(item, this.stage.show(item), this.stage.source);
    this.changed();
    this.stage.settle();
    this.questions.focus();
    this.pace.begin();
  }

  changed() {
    this.item.answers.seconds += this.pace.lap();
    this.item.keep();
    this.questions.update();
    this.stage.points();
    byId("next").classList.toggle("ready", this.item.answers.finished);
  }

  /** Go to a question. */
  go(index) {
    if (index === this.item.question) return;
    this.item.question = index;
    this.item.candidate = 0;
    this.changed();
  }

  step(by) {
    const count = this.item.answers.questions.length;
    this.go((this.item.question + by + count) % count);
    this.questions.focus();
  }

  activate(candidate) {
    if (candidate < 0 || candidate >= this.item.answers.count) return;
    this.item.candidate = candidate;
    this.questions.update();
    if (this.stage.marking) this.stage.moveCursor(0, 0);
  }

  /** Change the answer to the question; when that completes it, go on to the next one that is open. */
  answer(change) {
    const { answers } = this.item;
    const question = answers.questions[this.item.question];
    const before = answers.complete(question);
    change(answers, question);
    const after = answers.complete(question);
    const inside = document.activeElement?.closest(".choice, .same"); // a button that was pressed by key keeps the focus
    if (after && !before) this.advance();
    this.changed();
    if (!inside?.isConnected) this.questions.focus();
  }

  advance() {
    const { answers, question } = this.item;
    const count = answers.questions.length;
    for (let step = 1; step < count; step++) {
      const index = (question + step) % count;
      if (!answers.complete(answers.questions[index])) return this.go(index);
    }
  }

  mark(candidate, mark) {
    this.item.candidate = candidate;
    const asked = this.item.question;
    this.answer((answers, question) => answers.mark(question, candidate, mark));
    if (this.item.question !== asked) return;
    const { marks } = this.item.answers.of(this.item.answers.questions[asked]);
    const open = marks.findIndex((one, index) => one === null && index > candidate);
    if (marks[candidate] !== null && open >= 0) this.activate(open);
  }

  next() {
    const { answers } = this.item;
    if (!answers.finished) {
      const open = answers.questions.findIndex((question) => !answers.complete(question));
      this.go(open);
      this.questions.focus();
      return this.say(`${answers.questions[open].label} is still open.`);
    }
    this.changed();
    this.lasting = false;
    this.session.submit();
  }

  async undo() {
    if (this.item?.answers.undoable) {
      const question = this.item.answers.undo();
      if (question >= 0) this.item.question = question;
      byId("reason").value = this.item.answers.state.reason;
      this.changed();
      return this.questions.focus();
    }
    if (this.asking || this.session.closed) return;
    this.asking = true;
    try {
      const progress = await this.session.undo();
      if (progress) {
        this.pace.undone(progress);
        this.say("The last answer is taken back.");
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.say(error.status === 404 || error.status === 409 ? "There is nothing to undo." : error.message);
    } finally {
      this.asking = false;
    }
  }

  skip() {
    const dialog = byId("skip");
    dialog.returnValue = "";
    dialog.showModal();
  }

  async skipped() {
    if (byId("skip").returnValue !== "skip" || !this.item) return;
    try {
      await this.session.skip();
      this.say("Skipped.");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem(`Not skipped: ${error.message}`);
    }
  }

  /** Sign out once all answers are saved. */
  async signOut() {
    if (this.leaving) return;
    this.leaving = true;
    try {
      if (this.item) this.changed();
      if (!(await this.session.flush())) return; // the page says already what isn't saved
      await call("/api/sign-out", {});
      write(SIGNED_IN, null);
      boot(this);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem("The server doesn't answer: you are still signed in.");
    } finally {
      this.leaving = false;
    }
  }

  // ---------------------------------------------------------------------------------------------------- keys and mouse

  listen() {
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("keyup", (event) => event.code === "Space" && this.stage.flip(false));
    window.addEventListener("blur", () => this.stage.flip(false));
    document.addEventListener("click", (event) => {
      const { action } = event.target.closest("[data-action]")?.dataset ?? {};
      if (action) this.act({ name: action });
      // After a click the keys belong to the page again, not to the button that was clicked.
      if (event.detail > 0 && this.item && event.target.closest("#work button")) this.questions.focus();
    });
    const compare = byId("compare");
    compare.addEventListener("pointerdown", (event) => {
      compare.setPointerCapture(event.pointerId);
      this.stage.flip(true);
    });
    for (const name of ["pointerup", "pointercancel", "blur"]) compare.addEventListener(name, () => this.stage.flip(false));
    compare.addEventListener("contextmenu", (event) => event.preventDefault());
    const reason = byId("reason");
    reason.addEventListener("input", () => {
      this.item.answers.state.reason = reason.value;
      this.item.keep();
    });
    byId("skip").addEventListener("close", () => this.skipped());
    document.addEventListener("visibilitychange", () => this.pace.seen(!document.hidden));
  }

  key(event) {
    if (byId("work").hidden || document.querySelector("dialog[open]")) return;
    const action = actionOf(event);
    if (!action || action.name === "nothing") {
      if (action && !event.target.matches("input")) event.preventDefault();
      return;
    }
    if (event.target.matches("input, textarea")) {
      if (event.target.id === "reason" && this.item && ["next", "leave"].includes(action.name)) {
        event.preventDefault();
        this.questions.focus();
      }
      return;
    }
    // Buttons that the keys came to are pressed by them; the questions' own are only places to be.
    const onButton = event.target.closest("button, a") && !event.target.closest(".chip");
    const pressing = action.name === "next" || (action.name === "compare" && event.target.id !== "compare");
    if (onButton && pressing) return;
    if (event.target.id === "prompt" && ["up", "down", "question-before", "question-after"].includes(action.name)) return;
    if (this.act(action)) event.preventDefault();
  }

  /** @returns {boolean} whether there is such an action now. */
  act(action) {
    const always = {
      undo: () => this.undo(), help: () => byId("help").showModal(), "sign-out": () => this.signOut(),
    };
    const run = always[action.name] ?? (this.item && (this.marking(action) ?? this.working(action)));
    if (!run) return false;
    run();
    return true;
  }

  /** What keys do while defects are marked, where that differs. */
  marking({ name, number, shift }) {
    if (!this.stage.marking) return null;
    const moves = { left: [-1, 0], right: [1, 0], up: [0, -1], down: [0, 1] };
    if (moves[name]) return () => this.stage.moveCursor(...moves[name], shift);
    if (name === "digit" && number > 0) return () => this.activate(number - 1);
    return { next: () => this.stage.placeCursor(), leave: () => this.stage.mark(false) }[name] ?? null;
  }

  working({ name, number, shift }) {
    const { viewer } = this.stage;
    const { points } = this.item.answers.state;
    const rating = this.item.answers.job === "rating";
    const move = (right, down) => () => {
      if (viewer.enlarged) viewer.step(right / 8, down / 8);
      else if (down) this.step(down);
      else if (rating) this.activate(this.item.candidate + right);
    };
    return {
      digit: () => this.digit(number, shift),
      yes: () => this.yesNo(1),
      no: () => this.yesNo(0),
      next: () => this.next(),
      skip: () => this.skip(),
      reason: () => byId("reason").focus(),
      point: () => this.stage.mark(!this.stage.marking),
      remove: () => points.length && (this.item.answers.removePoint(points.length - 1), this.changed()),
      outline: () => this.say(this.stage.nextOutline()),
      compare: () => this.stage.flip(true),
      fit: () => viewer.fit(),
      actual: () => viewer.actual(),
      "zoom-in": () => viewer.zoomIn(),
      "zoom-out": () => viewer.zoomOut(),
      left: move(-1, 0),
      right: move(1, 0),
      up: move(0, -1),
      down: move(0, 1),
      "question-before": () => this.step(-1),
      "question-after": () => this.step(1),
      "candidate-before": () => this.activate(this.item.candidate - 1),
      "candidate-after": () => this.activate(this.item.candidate + 1),
    }[name];
  }

  digit(number, shift) {
    const { answers, question: index, candidate } = this.item;
    if (answers.job === "rating") {
      const [lowest, highest] = answers.questions[index].scale;
      if (number >= lowest && number <= highest) this.mark(candidate, number);
    } else if (number === 0) {
      this.answer((all, question) => all.noDifference(question));
    } else if (number <= answers.count) {
      if (answers.job === "good_same_bad") {
        this.answer((all, question) => all.verdict(question, ["left", "right"][number - 1]));
      } else {
        this.answer((all, question) => all.choose(question, shift ? "worst" : "best", number - 1));
      }
    }
  }

  yesNo(mark) {
    const { answers, question, candidate } = this.item;
    if (answers.job === "rating" && answers.questions[question].scale[1] === 1) this.mark(candidate, mark);
  }

  fillHelp(job) {
    const rows = helpFor(job).map(([keys, meaning]) => {
      const shown = keys.flatMap((key, index) => [index ? " " : "", element("kbd", {}, key)]);
      return element("div", {}, element("dt", {}, ...shown), element("dd", {}, meaning));
    });
    byId("help-keys").replaceChildren(...rows);
  }
}

/** Find out who is at the page, by the form where nobody is signed in, and let them work. */
async function boot(page) {
  page.session?.close();
  page.blank("Loading the next item…", "");
  const me = await signIn("me");
  write(SIGNED_IN, me.annotator);
  if (page.session?.annotator !== me.annotator || page.session.closed) await page.open(me);
}

const page = new Page();
watch(SIGNED_IN, () => boot(page));
boot(page);
