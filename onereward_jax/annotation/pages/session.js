/** An annotator at work: items in, answers out, one ahead always loaded. */

import { ApiError, call } from "./api.js";
import { draftName, forgetOldDrafts, Item } from "./item.js";
import { Outbox } from "./outbox.js";
import { write } from "./storage.js";

const AHEAD = 2; // assignments held: the one on the page and the next
const MOST = 5; // that may be asked for at once
const RETRY = 3_000; // milliseconds
const POLL = 10_000;
const FLUSH = 5_000;

export class Session {
  /**
   * @param {string} annotator
   * @param {object} events show(item), ahead(ready) for the item after it, empty(waiting), loading(), saving(count),
   *   saved(answer, left), problem(text), fine(), refused(text), held(text), signedOut().
   */
  constructor(annotator, events) {
    this.annotator = annotator;
    this.events = events;
    this.items = [];
    this.shown = null;
    this.outbox = new Outbox(annotator, {
      saved: (vote, answer) => this.saved(vote, answer),
      refused: (vote, error) => this.refused(vote, error),
      held: (_, error) => this.held(error),
      waiting: (count) => this.events.problem(waiting(count)),
      signedOut: () => this.events.signedOut(),
    });
    this.sent = new Map(); // what was answered, by id: a list of assignments that was on its way may still name it
    for (const assignment of this.outbox.assignments) this.sent.set(assignment, null);
    this.taken = []; // ids of the answers that are saved, in order
  }

  async start() {
    forgetOldDrafts(this.annotator);
    this.outbox.drain();
    await this.refill();
  }

  /** Stop asking and sending: somebody else signs in. What isn't saved yet stays in the browser. */
  close() {
    this.closed = true;
    this.outbox.close();
    clearTimeout(this.timer);
    for (const item of this.items) item.close();
    this.items = [];
  }

  /** @returns {Promise<boolean>} whether all answers are saved, after a last try. */
  flush() {
    return this.outbox.flush(FLUSH);
  }

  /** @returns {Promise<boolean>} whether nobody is signed in any more, or somebody else, in another tab. */
  async isOver() {
    try {
      return (await call("/api/me")).annotator !== this.annotator;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      return error.status === 401 || error.status === 403;
    }
  }

  /** Ask for assignments until the item on the page and the next are here. */
  async refill() {
    if (this.closed) return;
    this.again = true;
    if (this.filling) return;
    this.filling = true;
    while (this.again) {
      this.again = false;
      await this.fill();
    }
    this.filling = false;
  }

  async fill() {
    clearTimeout(this.timer);
    let answer;
    try {
      answer = await call("/api/assignments", { count: Math.min(MOST, AHEAD + this.outbox.assignments.length) });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (this.closed) return;
      if (error.status === 401 || (error.status === 403 && (await this.isOver()))) return this.events.signedOut();
      if (!this.outbox.count) this.events.problem(error.passing ? unreachable(error) : error.message);
      this.timer = setTimeout(() => this.refill(), RETRY);
      return;
    }
    if (this.closed) return;
    if (!this.outbox.count) this.events.fine();
    const open = answer.assignments.filter(({ id }) => !this.sent.has(id));
    const known = new Map(this.items.map((item) => [item.id, item]));
    this.waiting = answer.waiting;
    // What is on the page stays there: the server's order is for the rest.
    const rest = open.map((assignment) => known.get(assignment.id) ?? this.newItem(assignment));
    this.items = this.shown ? [this.shown, ...rest.filter((item) => item !== this.shown)] : rest;
    this.advance();
  }

  newItem(assignment, before = null) {
    return new Item(assignment, this.annotator, before, (item) => {
      if (item === this.items[0]) this.events.problem("An image doesn't come. Trying again; nothing is lost.");
    });
  }

  /** Show the first item, at once where it is loaded. */
  advance() {
    const [item] = this.items;
    if (item && item === this.shown) return this.lookAhead();
    if (!item) {
      this.events.empty(this.waiting || this.outbox.count > 0);
      if (this.waiting) this.timer = setTimeout(() => this.refill(), POLL);
      return;
    }
    if (!item.loaded) {
      this.events.loading();
      item.ready.then(() => {
        if (item !== this.items[0]) return;
        if (!this.outbox.count) this.events.fine();
        this.advance();
      });
      return;
    }
    this.shown = item;
    this.events.show(item);
    this.lookAhead();
  }

  lookAhead() {
    const next = this.items[1];
    this.events.ahead(Boolean(next?.loaded));
    if (next && !next.loaded) next.ready.then(() => next === this.items[1] && this.events.ahead(true));
  }

  /** Send the answers of the item on the page and go on to the next one. */
  submit() {
    const item = this.shown;
    item.keep();
    this.shown = null;
    this.items.shift();
    this.sent.set(item.id, item.answers);
    this.last = item;
    const sent = this.outbox.add(item.answers.vote(item.assignment));
    this.events.saving(this.outbox.count);
    if (this.items.length) this.advance();
    else this.events.loading();
    return sent;
  }

  saved(vote, answer) {
    this.forgetDraft(vote);
    if (this.closed) return;
    this.taken.push(vote.assignment);
    this.events.saved(answer, this.outbox.count);
    this.refill();
  }

  refused(vote, error) {
    if (error.status === 400) this.sent.delete(vote.assignment); // comes back with its draft
    else this.forgetDraft(vote); // answered elsewhere
    this.events.refused(error.message);
    this.refill();
  }

  /** The server doesn't know the item, or not whose it is. */
  async held(error) {
    const over = await this.isOver();
    if (this.closed) return;
    if (over) this.events.signedOut();
    else this.events.held(error.message);
  }

  forgetDraft({ assignment }) {
    write(draftName(this.annotator, assignment), null);
  }

  /** Take back the last answer, and put its item on the page. */
  async undo() {
    if (this.outbox.count) return this.events.problem("The last answer isn't saved yet: undo it in a moment.");
    const last = this.taken.at(-1);
    const { assignment, ...progress } = await call("/api/undo", last ? { assignment: last } : {});
    this.taken.pop();
    this.shown?.keep();
    const answers = this.sent.get(assignment.id);
    if (answers) write(draftName(this.annotator, assignment.id), { at: Date.now(), ...answers.kept() }); // the seconds, too
    this.sent.delete(assignment.id);
    const item = this.newItem(assignment, this.last?.id === assignment.id ? this.last : null);
    this.shown = null;
    this.items = [item, ...this.items.filter((other) => other.id !== item.id)];
    this.advance();
    return progress;
  }

  async skip() {
    const item = this.shown;
    await call("/api/skip", { assignment: item.id });
    item.drop();
    this.sent.set(item.id, null);
    this.items = this.items.filter((other) => other !== item);
    this.shown = null;
    if (this.items.length) this.advance();
    else this.events.loading();
    await this.refill();
  }
}

const waiting = (count) =>
  `The server doesn't answer. ${count === 1 ? "Your answer is" : `${count} answers are`} kept here and sent again until saved.`;

const unreachable = (error) =>
  error.status === 503 || error.status === 507
    ? `The server is busy (${error.message}) Trying again.`
    : "The server doesn't answer. Trying again; nothing is lost.";
