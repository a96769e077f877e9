/** One image of the item: the source or a candidate, with its outline, markers, and the bar of choices. */

import { button, element } from "./dom.js";
import { stroke } from "./outline.js";

export class Pane {
  /**
   * @param {HTMLImageElement} image decoded.
   * @param {object} options candidate: number from 0, or null for the source;  label: its name;
   *   source: image to flip to, or null;  outline: see outline.js, or null.
   */
  constructor(image, { candidate, label, source = null, outline = null }) {
    this.candidate = candidate;
    this.label = label;
    this.image = image;
    this.source = source;
    this.outline = outline;
    this.outlined = candidate === null;
    this.natural = { width: image.naturalWidth || 1, height: image.naturalHeight || 1 };
    image.alt = label;
    this.images = [image];
    if (source) {
      const behind = source.cloneNode();
      behind.className = "flipped";
      behind.alt = "";
      this.images.push(behind);
    }
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.pointer = element("span", { class: "pointer", "aria-hidden": "true", hidden: true });
    this.markers = element("div", { class: "markers" });
    this.view = element("div", { class: "view" }, ...this.images, this.canvas, this.pointer, this.markers);
    if (!image.naturalWidth) this.view.append(element("p", { class: "broken" }, "This image can't be shown: skip the item."));
    this.bar = element("figcaption", { class: "bar" });
    this.figure = element("figure", { class: "pane", "aria-label": label }, this.view, this.bar);
    this.box = { left: 0, top: 0, width: 1, height: 1 };
  }

  measure() {
    this.rect = this.view.getBoundingClientRect();
  }

  size() {
    if (!this.rect) this.measure();
    return { width: Math.max(1, this.rect.width), height: Math.max(1, this.rect.height) };
  }

  fitScale() {
    const { width, height } = this.size();
    return Math.min(width / this.natural.width, height / this.natural.height);
  }

  imageSize(scale) {
    return { width: this.natural.width * scale, height: this.natural.height * scale };
  }

  /** Where an event is on the image, in [0, 1] where it is on it. */
  at(event) {
    const { left, top } = this.view.getBoundingClientRect();
    return [
      (event.clientX - left - this.box.left) / this.box.width,
      (event.clientY - top - this.box.top) / this.box.height,
    ];
  }

  /** Show the image at `scale` with (x, y) of it in the middle of the view, or the whole axis where it fits. */
  draw(scale, x, y) {
    const view = this.size();
    const ratio = window.devicePixelRatio;
    const image = this.imageSize(scale);
    const start = (seen, whole, centre, edge) => {
      const free = whole <= seen + 0.5 ? (seen - whole) / 2 : Math.min(0, Math.max(seen - whole, seen / 2 - centre * whole));
      return Math.round((edge + free) * ratio) / ratio - edge; // whole pixels of the screen: 1:1 is really 1:1
    };
    this.box = {
      left: start(view.width, image.width, x, this.rect.left),
      top: start(view.height, image.height, y, this.rect.top),
      ...image,
    };
    for (const shown of this.images) {
      shown.style.transform = `translate(${this.box.left}px, ${this.box.top}px)`;
      shown.style.width = `${image.width}px`;
      shown.style.height = `${image.height}px`;
      shown.classList.toggle("crisp", scale * ratio > 1.001);
    }
    if (this.outline) stroke(this.canvas, this.outlined ? this.outline : null, this.box, view);
    this.place();
  }

  place() {
    for (const marker of this.markers.children) this.put(marker, Number(marker.dataset.x), Number(marker.dataset.y));
    if (this.pointed) this.put(this.pointer, ...this.pointed);
  }

  put(node, x, y) {
    node.style.transform = `translate(${this.box.left + x * this.box.width}px, ${this.box.top + y * this.box.height}px)`;
  }

  flip(on) {
    this.figure.classList.toggle("flip", on && this.source !== null);
  }

  /** Show where the mouse is in another pane, or where the keys would mark a defect. */
  point(place, kind = "") {
    this.pointed = place;
    this.pointer.hidden = !place;
    this.pointer.className = `pointer ${kind}`;
    if (place) this.put(this.pointer, ...place);
  }

  /** @param {{index: number, x: number, y: number}[]} points of this candidate; `remove(index)` is called on a click. */
  mark(points, remove) {
    this.markers.replaceChildren(
      ...points.map(({ index, x, y }) => {
        const name = `Defect ${index + 1} on ${this.label}: remove`;
        const made = button({ class: "marker", "aria-label": name, title: "Remove", "data-x": x, "data-y": y }, `${index + 1}`);
        made.addEventListener("click", () => remove(index));
        return made;
      }),
    );
    this.place();
  }
}
