/** How long an item is looked at, how much is done, and a word about a pause now and then. */

import { call } from "./api.js";
import { byId, setText } from "./dom.js";

const PAUSE_AFTER = 50 * 60_000; // milliseconds of work
const EVERY = 5; // answers after which the server is asked for the pace
const A_PAUSE = 5 * 60_000; // so long without an answer is one

export class Pace {
  constructor() {
    this.answers = 0;
    this.begin();
    this.workedSince = this.lastAnswer = Date.now();
  }

  begin() {
    this.passed = 0;
    this.since = document.hidden ? null : performance.now();
  }

  async ask() {
    try {
      this.show(await call("/api/me"));
    } catch {
      // It is asked again later.
    }
  }

  /** Time passes only while the page is seen. */
  seen(visible) {
    if (this.since !== null) this.passed += performance.now() - this.since;
    this.since = visible ? performance.now() : null;
  }

  /** Seconds since the last lap. */
  lap() {
    this.seen(!document.hidden);
    const seconds = this.passed / 1000;
    this.passed = 0;
    return seconds;
  }

  show(numbers) {
    this.numbers = { ...this.numbers, ...numbers };
    const { done, total, today, per_hour: perHour } = this.numbers;
    const bar = byId("progress");
    if (total) {
      bar.max = total;
      bar.value = done;
      bar.title = `${done} of ${total}`;
    }
    const parts = [total ? `${done} of ${total}` : `${done} done`, `${today} today`];
    if (perHour) parts.push(`${Math.round(perHour)}/h`);
    setText(byId("pace"), parts.join(" · "));
  }

  undone(progress) {
    this.show({ ...progress, today: this.numbers.today - 1 });
  }

  saved(progress) {
    this.show({ today: this.numbers.today + 1, ...progress });
    if (++this.answers % EVERY === 0) this.ask();
    const now = Date.now();
    if (now - this.lastAnswer > A_PAUSE) this.workedSince = now;
    this.lastAnswer = now;
    if (now - this.workedSince > PAUSE_AFTER) {
      this.workedSince = now;
      setText(byId("pace"), "50 minutes without a break: a few minutes away keep the eye fresh.");
    }
  }
}
