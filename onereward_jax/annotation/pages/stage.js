/** The images of an item side by side: their arrangement, zoom, outline, flipping, and marks of defects. */

import { byId, element, pressed, setText } from "./dom.js";
import { arrange, GAP } from "./layout.js";
import { Pane } from "./pane.js";
import { barSizes, panelSizes } from "./questions.js";
import { Viewer } from "./viewer.js";

const OUTLINES = ["source", "all", "none"];
const PADDING = 2; // pixels around the stage, for frames
const NEAR = 0.03; // of the image: a mark placed so near to another takes it away
const STEP = 0.02; // of the image: a press of an arrow while marking

export class Stage {
  /** @param {object} events pointed(candidate, x, y), removed(index), active(candidate). */
  constructor(events) {
    this.events = events;
    this.node = byId("stage");
    this.panel = byId("panel");
    this.outlines = "source";
    this.marking = false;
    this.cursor = { x: 0.5, y: 0.5 };
    this.viewer = new Viewer({
      drawn: (percent, enlarged) => {
        setText(byId("zoom"), `${percent} %`);
        this.node.classList.toggle("enlarged", enlarged);
      },
      clicked: (pane, x, y) => this.clicked(pane, x, y),
      pointed: (pane, x, y) => this.follow(pane, x, y),
    });
    new ResizeObserver(() => this.settle()).observe(this.node);
    this.sizes = new ResizeObserver(() => this.viewer.draw());
  }

  /** Build the panes of an item whose images are loaded, and return those of its candidates. */
  show(item) {
    this.item = item;
    this.mark(false);
    const { source, outline, candidates } = item;
    this.source = source ? new Pane(source, { candidate: null, label: "Source", outline }) : null;
    const sides = item.answers.job === "good_same_bad" ? ["Left", "Right"] : [];
    this.candidates = candidates.map((image, candidate) => {
      const label = sides[candidate] ?? `Candidate ${candidate + 1}`;
      return new Pane(image, { candidate, label, source, outline });
    });
    this.source?.bar.append(element("span", { class: "number name" }, "Source"));
    this.panes = this.source ? [this.source, ...this.candidates] : this.candidates;
    const figures = this.candidates.map((pane) => pane.figure);
    if (this.source) figures.splice(sides.length ? 1 : 0, 0, this.source.figure);
    this.node.replaceChildren(...figures, this.panel);
    byId("outline").disabled = !outline;
    byId("compare").disabled = !source;
    this.setOutline(this.outlines);
    this.arrange();
    this.viewer.attach(this.panes);
    this.sizes.disconnect();
    for (const pane of this.panes) this.sizes.observe(pane.view);
    this.points();
    return this.candidates;
  }

  arrange() {
    if (!this.item || !this.node.clientHeight) return;
    const [width, height] = [this.node.clientWidth - 2 * PADDING, this.node.clientHeight - 2 * PADDING];
    const { job, questions } = this.item.answers;
    const layout = arrange({
      width,
      height,
      panes: this.panes.length,
      aspect: this.item.aspect,
      ...barSizes(job, questions),
      ...panelSizes(job, questions, width),
    });
    const columns = `repeat(${layout.columns}, minmax(0, 1fr))`;
    this.node.style.gridTemplateColumns = layout.panel === "side" ? `${columns} 264px` : columns;
    const least = layout.area ? 0 : 220;
    const rowsOf = `repeat(${layout.rows}, minmax(${least}px, 1fr))`;
    this.node.style.gridTemplateRows = layout.panel === "bottom" ? `${rowsOf} auto` : rowsOf;
    this.node.style.gap = `${GAP}px`;
    // Of two candidates, the source stands in the middle, both as far from it; or else after both.
    const last = job === "good_same_bad" && layout.columns < 3;
    if (this.source) this.source.figure.style.order = last ? 1 : "";
    this.panel.style.order = last ? 2 : "";
    this.node.dataset.job = job;
    this.node.dataset.bars = layout.bars;
    this.node.dataset.panel = layout.panel;
  }

  /** Arrange and draw at once, for the sizes that there are now. */
  settle() {
    this.arrange();
    this.viewer.draw();
  }

  // --------------------------------------------------------------------------------------------- outline, flip, pointer

  nextOutline() {
    this.setOutline(OUTLINES[(OUTLINES.indexOf(this.outlines) + 1) % OUTLINES.length]);
    this.viewer.draw();
    return { source: "Outline on the source", all: "Outline on all images", none: "No outline" }[this.outlines];
  }

  setOutline(mode) {
    this.outlines = mode;
    for (const pane of this.panes) pane.outlined = mode === "all" || (mode === "source" && pane.candidate === null);
    pressed(byId("outline"), mode !== "none");
  }

  flip(on) {
    for (const pane of this.candidates ?? []) pane.flip(on);
    pressed(byId("compare"), on);
  }

  /** The place under the mouse, in all other panes. */
  follow(pane, x, y) {
    if (this.marking) return;
    const on = pane && x >= 0 && x <= 1 && y >= 0 && y <= 1;
    for (const other of this.panes) other.point(on && other !== pane ? [x, y] : null);
  }

  // ------------------------------------------------------------------------------------------------------------- marking

  /** Switch marking of defects on or off. */
  mark(on) {
    this.marking = on;
    this.cursor = { x: 0.5, y: 0.5 };
    pressed(byId("point"), on);
    this.node.classList.toggle("marking", on);
    byId("pointing").hidden = !on;
    if (this.panes) for (const pane of this.panes) pane.point(null);
    if (on) this.moveCursor(0, 0);
  }

  /** Move the cross that the keys mark with; `fine` steps are a quarter. */
  moveCursor(right, down, fine = false) {
    const step = fine ? STEP / 4 : STEP;
    this.cursor.x = Math.min(1, Math.max(0, this.cursor.x + right * step));
    this.cursor.y = Math.min(1, Math.max(0, this.cursor.y + down * step));
    const { candidate } = this.item;
    for (const pane of this.candidates) {
      pane.point(pane.candidate === candidate ? [this.cursor.x, this.cursor.y] : null, "cross");
    }
    const place = [this.cursor.x, this.cursor.y].map((value) => `${Math.round(100 * value)} %`).join(", ");
    const { label } = this.candidates[candidate];
    setText(byId("pointing"), `Marking defects: click, or ${label} at ${place} by arrows and Enter. D ends.`);
  }

  placeCursor() {
    this.toggle(this.item.candidate, this.cursor.x, this.cursor.y);
  }

  clicked(pane, x, y) {
    if (!this.marking) return false;
    if (pane.candidate !== null && x >= 0 && x <= 1 && y >= 0 && y <= 1) {
      this.events.active(pane.candidate);
      this.cursor = { x, y };
      this.moveCursor(0, 0);
      this.toggle(pane.candidate, x, y);
    }
    return true;
  }

  toggle(candidate, x, y) {
    const { points } = this.item.answers.state;
    const near = points.findIndex((one) => one.candidate === candidate && Math.hypot(one.x - x, one.y - y) < NEAR);
    if (near >= 0) this.events.removed(near);
    else this.events.pointed(candidate, x, y);
  }

  /** Bring the markers in line with the answers. */
  points() {
    const points = this.item.answers.state.points.map((point, index) => ({ ...point, index }));
    for (const pane of this.candidates) {
      pane.mark(points.filter((point) => point.candidate === pane.candidate), this.events.removed);
    }
  }
}
