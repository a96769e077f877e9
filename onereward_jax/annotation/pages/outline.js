/** The outline of a mask, as a path in the mask's pixels. */

const WHITE = 128;

/**
 * @param {HTMLImageElement} mask decoded; white where candidates were generated.
 * @returns {{path: Path2D, width: number, height: number}}
 */
export function outlineOf(mask) {
  const { naturalWidth: width, naturalHeight: height } = mask;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(mask, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[4 * (y * width + x)] >= WHITE;
  const path = new Path2D();
  // Edges between pixels of which one is inside; runs of them are one line.
  for (let y = 0; y <= height; y++) {
    for (let x = 0, start = null; x <= width; x++) {
      const edge = x < width && inside(x, y) !== inside(x, y - 1);
      if (edge && start === null) start = x;
      if (!edge && start !== null) {
        path.moveTo(start, y);
        path.lineTo(x, y);
        start = null;
      }
    }
  }
  for (let x = 0; x <= width; x++) {
    for (let y = 0, start = null; y <= height; y++) {
      const edge = y < height && inside(x, y) !== inside(x - 1, y);
      if (edge && start === null) start = y;
      if (!edge && start !== null) {
        path.moveTo(x, start);
        path.lineTo(x, y);
        start = null;
      }
    }
  }
  return { path, width, height };
}

/** Stroke the outline on a canvas over the image: bright on dark, so that it is seen on any image. */
export function stroke(canvas, outline, box, view) {
  const ratio = window.devicePixelRatio;
  const [width, height] = [Math.round(view.width * ratio), Math.round(view.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  if (!outline) return;
  const scale = { x: box.width / outline.width, y: box.height / outline.height };
  context.setTransform(scale.x * ratio, 0, 0, scale.y * ratio, box.left * ratio, box.top * ratio);
  context.lineCap = "square";
  for (const [colour, pixels] of [["rgb(0 0 0 / 0.75)", 4], ["#ffe94d", 1.75]]) {
    context.strokeStyle = colour;
    context.lineWidth = pixels / scale.x;
    context.stroke(outline.path);
  }
}
