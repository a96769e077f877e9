/** Zoom and pan, in step over all panes. */

const LARGEST = 16; // CSS pixels for a pixel of the image
const STEP = 1.25; // a press of + or −
const DRAG = 5; // pixels: less is a click
const TWICE = 350; // milliseconds between two clicks that are one double-click

export class Viewer {
  /**
   * @param {object} events drawn(percent), clicked(pane, x, y): x and y in [0, 1] of the image; pointed(pane, x, y) for
   *   the mouse over an image, pane null when it left.
   */
  constructor(events) {
    this.events = events;
    this.panes = [];
    this.pointers = new Map();
    this.reset();
  }

  reset() {
    this.base = "fit";
    this.zoom = 1;
    this.x = 0.5;
    this.y = 0.5;
  }

  attach(panes) {
    this.panes = panes;
    this.pointers.clear();
    this.reset();
    for (const pane of panes) this.listen(pane);
    this.draw();
  }

  // ------------------------------------------------------------------------------------------------------------ state

  /** The scale at which a pane's image fits; the same for all images of its size, exactly. */
  fitOf(pane) {
    const { width, height } = pane.natural;
    const alike = this.panes.filter(({ natural }) => natural.width === width && natural.height === height);
    return Math.min(...alike.map((other) => other.fitScale()));
  }

  scale(pane) {
    const fit = this.fitOf(pane);
    const actual = 1 / window.devicePixelRatio;
    const wanted = (this.base === "fit" ? fit : actual) * this.zoom;
    return Math.min(LARGEST, Math.max(Math.min(fit, actual), wanted));
  }

  get enlarged() {
    const pane = this.panes[0];
    return Boolean(pane) && this.scale(pane) > this.fitOf(pane) * 1.001;
  }

  fit() {
    this.reset();
    this.later();
  }

  /** One pixel of the image is one of the screen; `pane`, x and y stay where they are. */
  actual(pane = this.panes[0], x = this.x, y = this.y) {
    this.keeping(pane, x, y, () => {
      this.base = "actual";
      this.zoom = 1;
    });
  }

  zoomBy(factor, pane = this.panes[0], x = this.x, y = this.y) {
    this.keeping(pane, x, y, () => {
      // From the limits on, so that as many steps lead back as led there.
      const base = this.base === "fit" ? this.fitOf(pane) : 1 / window.devicePixelRatio;
      this.zoom = this.scale(pane) / base;
      this.zoom *= factor;
      this.zoom = this.scale(pane) / base;
    });
  }

  zoomIn() {
    this.zoomBy(STEP);
  }

  zoomOut() {
    this.zoomBy(1 / STEP);
  }

  /** Move by parts of what is seen. */
  step(right, down) {
    const pane = this.panes[0];
    if (pane) this.panBy(pane, right * pane.size().width, down * pane.size().height);
  }

  /** Move what is seen by CSS pixels. */
  panBy(pane, right, down) {
    const { width, height } = pane.imageSize(this.scale(pane));
    this.x += right / width;
    this.y += down / height;
    this.clamp(pane);
    this.later();
  }

  keeping(pane, x, y, change) {
    if (!pane) return;
    const before = pane.imageSize(this.scale(pane));
    const from = { right: (x - this.x) * before.width, down: (y - this.y) * before.height };
    change();
    const after = pane.imageSize(this.scale(pane));
    this.x = x - from.right / after.width;
    this.y = y - from.down / after.height;
    this.clamp(pane);
    this.later();
  }

  /** Keep the image's edges at or beyond those of the view. */
  clamp(pane) {
    const view = pane.size();
    const image = pane.imageSize(this.scale(pane));
    const within = (value, seen, whole) => {
      const half = Math.min(0.5, seen / whole / 2);
      return Math.min(1 - half, Math.max(half, value));
    };
    this.x = within(this.x, view.width, image.width);
    this.y = within(this.y, view.height, image.height);
  }

  later() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    if (!this.panes.length) return;
    for (const pane of this.panes) pane.measure();
    this.clamp(this.panes[0]);
    for (const pane of this.panes) pane.draw(this.scale(pane), this.x, this.y);
    const percent = Math.round(this.scale(this.panes[0]) * window.devicePixelRatio * 100);
    this.events.drawn(percent, this.enlarged);
  }

  // ----------------------------------------------------------------------------------------------- mouse, pen and touch

  listen(pane) {
    const view = pane.view;
    view.addEventListener("wheel", (event) => this.wheel(pane, event), { passive: false });
    view.addEventListener("pointerdown", (event) => this.down(pane, event));
    view.addEventListener("pointermove", (event) => this.move(pane, event));
    for (const name of ["pointerup", "pointercancel"]) {
      view.addEventListener(name, (event) => this.up(pane, event));
    }
    view.addEventListener("pointerleave", () => this.events.pointed(null));
  }

  wheel(pane, event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 33 : event.deltaMode === 2 ? 400 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0015; // a pinch on a touchpad comes as small turns with Ctrl
    this.zoomBy(Math.exp(-Math.max(-300, Math.min(300, event.deltaY * lines)) * speed), pane, ...pane.at(event));
  }

  down(pane, event) {
    if (event.button > 1 || event.target.closest("button")) return;
    pane.view.setPointerCapture(event.pointerId);
    const place = { x: event.clientX, y: event.clientY };
    this.pointers.set(event.pointerId, { pane, ...place, from: place, moved: this.pointers.size > 0 });
    if (this.pointers.size > 1) for (const pointer of this.pointers.values()) pointer.moved = true;
  }

  move(pane, event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) {
      if (event.pointerType === "mouse") this.events.pointed(pane, ...pane.at(event));
      return;
    }
    const [right, down] = [event.clientX - pointer.x, event.clientY - pointer.y];
    const others = [...this.pointers.values()].filter((other) => other !== pointer);
    if (!pointer.moved && Math.hypot(event.clientX - pointer.from.x, event.clientY - pointer.from.y) < DRAG) return;
    pointer.moved = true;
    if (others.length) {
      const [other] = others;
      const before = Math.hypot(pointer.x - other.x, pointer.y - other.y);
      const after = Math.hypot(event.clientX - other.x, event.clientY - other.y);
      const middle = { clientX: (event.clientX + other.x) / 2, clientY: (event.clientY + other.y) / 2 };
      if (before > 0) this.zoomBy(after / before, pointer.pane, ...pointer.pane.at(middle));
      this.panBy(pointer.pane, -right / 2, -down / 2);
    } else {
      this.panBy(pointer.pane, -right, -down);
    }
    Object.assign(pointer, { x: event.clientX, y: event.clientY });
  }

  up(pane, event) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (!pointer || pointer.moved || event.type === "pointercancel") return;
    const place = pane.at(event);
    const last = this.last;
    this.last = { time: event.timeStamp, pane };
    if (this.events.clicked(pane, ...place)) return;
    if (last?.pane === pane && event.timeStamp - last.time < TWICE) {
      this.last = null;
      if (this.enlarged) this.fit();
      else this.actual(pane, ...place);
    }
  }
}
