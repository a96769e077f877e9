/** The server's answers, and the box of votes that are not yet known to be saved. */

import { read, write } from "./storage.js";

const TIMEOUT = 20_000; // milliseconds
const LONGEST_WAIT = 8_000;

/** A refusal (status of the response) or no answer at all (status 0). */
export class ApiError extends Error {
  constructor(status, message, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

/** Send JSON (GET without `body`) and return the JSON that comes back. */
export async function call(path, body) {
  const options = { signal: AbortSignal.timeout(TIMEOUT), headers: { Accept: "application/json" } };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  let answer;
  try {
    response = await fetch(path, options);
    answer = await response.json();
  } catch {
    // No server, or a proxy's page instead of its answer: a status below 500 must not pass as success.
    const status = response && !response.ok ? response.status : 0;
    throw new ApiError(status, "The server doesn't answer.");
  }
  if (!response.ok) throw new ApiError(response.status, String(answer.error ?? `Refused (${response.status}).`), answer);
  return answer;
}

/** Votes in the order in which they were given, each sent again with the same key until the server says it is saved. */
export class Outbox {
  /**
   * @param {string} annotator whose votes: browsers are shared.
   * @param {object} events saved(entry, answer), refused(entry, error), waiting(count, error), signedOut().
   */
  constructor(annotator, events) {
    this.name = `outbox.${annotator}`;
    this.events = events;
    this.entries = read(this.name) ?? [];
    this.running = false;
    this.wake = () => {};
    window.addEventListener("online", () => this.wake());
  }

  get count() {
    return this.entries.length;
  }

  holds(assignment) {
    return this.entries.some((entry) => entry.assignment === assignment);
  }

  add(vote) {
    this.entries.push({ key: crypto.getRandomValues(new Uint32Array(4)).join("-"), ...vote });
    write(this.name, this.entries);
    return this.drain();
  }

  async drain() {
    if (this.running) return;
    this.running = true;
    let wait = 500;
    while (this.entries.length) {
      const entry = this.entries[0];
      try {
        const answer = await call("/api/votes", entry);
        this.remove(entry);
        wait = 500;
        this.events.saved(entry, answer);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (error.status === 401) {
          this.running = false;
          return this.events.signedOut();
        }
        if (error.passing) {
          this.events.waiting(this.entries.length, error);
          await this.pause(wait);
          wait = Math.min(2 * wait, LONGEST_WAIT);
        } else {
          this.remove(entry);
          this.events.refused(entry, error);
        }
      }
    }
    this.running = false;
  }

  remove(entry) {
    this.entries = this.entries.filter((other) => other.key !== entry.key);
    write(this.name, this.entries.length ? this.entries : null);
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
