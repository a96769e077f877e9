/** One assignment with its images, loaded and decoded before it is shown, and its answers. */

import { Answers } from "./answers.js";
import { load } from "./images.js";
import { outlineOf } from "./outline.js";
import { namesAfter, read, write } from "./storage.js";

const DRAFT_DAYS = 30;

export const draftName = (annotator, id) => `draft.${annotator}.${id}`;

/** Forget drafts of long ago. Which others are still needed no list tells: the server names only the first open items. */
export function forgetOldDrafts(annotator) {
  const oldest = Date.now() - DRAFT_DAYS * 86_400_000;
  for (const id of namesAfter(draftName(annotator, ""))) {
    const name = draftName(annotator, id);
    if (!(read(name)?.at >= oldest)) write(name, null);
  }
}

export class Item {
  /**
   * @param {object} assignment as the server gave it.
   * @param {string} annotator whose drafts are kept.
   * @param {Item|null} before the same item, whose images are loaded already.
   * @param {function(Item): void} failed called each time that an image doesn't come; it is asked for again.
   */
  constructor(assignment, annotator, before = null, failed = () => {}) {
    this.assignment = assignment;
    this.failed = failed;
    this.draft = draftName(annotator, assignment.id);
    this.answers = new Answers(assignment, read(this.draft));
    this.question = Math.max(0, this.answers.questions.findIndex((question) => !this.answers.complete(question)));
    this.candidate = 0;
    this.loaded = before !== null;
    if (before) Object.assign(this, { source: before.source, outline: before.outline, candidates: before.candidates });
    else this.ready = this.load();
  }

  get id() {
    return this.assignment.id;
  }

  async load() {
    const { source, mask, candidates } = this.assignment;
    const failed = () => {
      if (!this.closed) this.failed(this);
      return !this.closed;
    };
    const [first, hole, ...others] = await Promise.all(
      [source, mask, ...candidates].map((url) => (url ? load(url, failed) : null)),
    );
    this.source = first;
    this.outline = hole?.naturalWidth ? outlineOf(hole) : null;
    this.candidates = others;
    this.loaded = true;
  }

  /** Width over height of its widest image. */
  get aspect() {
    const images = [this.source, ...this.candidates].filter((image) => image?.naturalWidth);
    return Math.max(...images.map((image) => image.naturalWidth / image.naturalHeight), 0) || 1;
  }

  keep() {
    write(this.draft, { at: Date.now(), ...this.answers.kept() });
  }

  drop() {
    write(this.draft, null);
  }

  /** Ask for its images no more. */
  close() {
    this.closed = true;
  }
}
