/** One assignment with its images, loaded and decoded before it is shown, and its answers. */

import { Answers } from "./answers.js";
import { outlineOf } from "./outline.js";
import { read, write } from "./storage.js";

/** @returns {Promise<HTMLImageElement>} decoded, or without size where it can't be. */
async function load(url) {
  const image = new Image();
  image.decoding = "sync"; // painted together with the rest of the item
  image.draggable = false;
  image.src = url;
  try {
    await image.decode();
  } catch {
    // The pane says so; the item can be skipped.
  }
  return image;
}

export const draftName = (annotator, id) => `draft.${annotator}.${id}`;

export class Item {
  /**
   * @param {object} assignment as the server gave it.
   * @param {string} annotator whose drafts are kept.
   * @param {Item|null} before the same item, whose images are loaded already.
   */
  constructor(assignment, annotator, before = null) {
    this.assignment = assignment;
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
    const [first, hole, ...others] = await Promise.all(
      [source, mask, ...candidates].map((url) => (url ? load(url) : null)),
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
    write(this.draft, this.answers.kept());
  }

  drop() {
    write(this.draft, null);
  }
}
