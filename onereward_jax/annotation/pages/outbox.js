/** The votes that are not yet known to be saved. Each is kept under a name of its own, so that tabs don't disturb each other. */

import { ApiError, call } from "./api.js";
import { namesAfter, read, write } from "./storage.js";

const FIRST_WAIT = 500; // milliseconds
const LONGEST_WAIT = 8_000;

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** The annotators whose votes this browser keeps. */
export const keptBy = () => [...new Set(namesAfter("outbox.").map((name) => name.slice(0, name.lastIndexOf("."))))];

/** Votes in the order in which they were given, each sent again with the same key until the server says it is saved. */
export class Outbox {
  /**
   * @param {string} annotator whose votes: browsers are shared.
   * @param {object} events saved(vote, answer), refused(vote, error): it is gone, held(vote, error): it is kept, and sent
   *   again when the page is loaded again, waiting(count), signedOut().
   */
  constructor(annotator, events) {
    this.prefix = `outbox.${annotator}.`;
    this.events = events;
    const keys = namesAfter(this.prefix).filter((key) => !key.includes(".")); // else of one whose name goes on so
    const kept = keys.map((key) => read(this.prefix + key));
    this.entries = kept.filter((entry) => entry?.vote).sort((one, other) => one.at - other.at);
    this.held = new Set();
    this.running = false;
    this.wake = () => {};
    this.online = () => {
      this.held.clear();
      this.wake();
      this.drain();
    };
    window.addEventListener("online", this.online);
  }

  /** Votes on their way. */
  get count() {
    return this.entries.length - this.held.size;
  }

  /** Ids of the assignments whose votes are here. */
  get assignments() {
    return this.entries.map(({ vote }) => vote.assignment);
  }

  add(vote) {
    const key = crypto.getRandomValues(new Uint32Array(4)).join("-");
    const at = Math.max(Date.now(), 1 + (this.entries.at(-1)?.at ?? 0)); // in order, whatever the clock does
    const entry = { at, vote: { key, ...vote } };
    this.entries.push(entry);
    write(this.prefix + key, entry);
    return this.drain();
  }

  /** Send until there is nothing left to send. */
  drain() {
    if (!this.running && !this.closed) this.run = this.send();
    return this.run;
  }

  /** @returns {Promise<boolean>} whether all could be sent within so many milliseconds. */
  async flush(milliseconds) {
    this.wake();
    await Promise.race([this.drain(), sleep(milliseconds)]);
    return this.count === 0;
  }

  /** Send no more; what is kept stays in the browser. */
  close() {
    this.closed = true;
    window.removeEventListener("online", this.online);
    this.wake();
  }

  async send() {
    this.running = true;
    let wait = FIRST_WAIT;
    while (!this.closed) {
      const vote = this.entries.map((entry) => entry.vote).find(({ key }) => !this.held.has(key));
      if (!vote) break;
      try {
        const answer = await call("/api/votes", vote);
        this.remove(vote);
        wait = FIRST_WAIT;
        this.events.saved(vote, answer);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (this.closed) break;
        if (error.passing) {
          this.events.waiting(this.count);
          await this.pause(wait);
          wait = Math.min(2 * wait, LONGEST_WAIT);
        } else if (error.status === 400 || error.status === 409) {
          this.remove(vote);
          this.events.refused(vote, error);
        } else if (error.status === 401) {
          this.events.signedOut();
          break;
        } else {
          // Not of this annotator, or not of this server: perhaps of the one that is there later.
          this.held.add(vote.key);
          await this.events.held(vote, error);
        }
      }
    }
    this.running = false;
  }

  remove({ key }) {
    this.entries = this.entries.filter(({ vote }) => vote.key !== key);
    write(this.prefix + key, null);
  }

  pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
