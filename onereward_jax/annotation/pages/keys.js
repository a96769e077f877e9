/** Which key does what. Digits by their place on the keyboard, letters by what is printed on them. */

/** [keys, what they do] for the help, by job: null is for all. */
const HELP = [
  ["best_worst", ["1 – 9"], "best candidate"],
  ["best_worst", ["Shift", "1 – 9"], "worst candidate"],
  ["best_worst", ["0"], "no difference"],
  ["good_same_bad", ["1"], "left is better"],
  ["good_same_bad", ["2"], "right is better"],
  ["good_same_bad", ["0"], "no difference"],
  ["rating", ["1 – 5"], "mark for the candidate with the frame"],
  ["rating", ["Y", "N"], "yes, no (also 1, 0)"],
  ["rating", ["[", "]"], "candidate before, after"],
  [null, ["Tab"], "next question (Shift: back)"],
  [null, ["↑", "↓"], "question before, after; moves the images when enlarged"],
  [null, ["Enter"], "next item"],
  [null, ["Space"], "hold: the source in place of the candidates"],
  [null, ["+", "−"], "zoom"],
  [null, ["F"], "fit to the window"],
  [null, ["P"], "real pixels, 1:1"],
  [null, ["O"], "outline of the mask: on the source, on all, off"],
  [null, ["D"], "mark defects: click, or arrows and Enter; digit: candidate"],
  [null, ["Backspace"], "remove the last mark"],
  [null, ["R"], "reason"],
  [null, ["Z"], "undo: the last choice, then the last answer"],
  [null, ["S"], "skip"],
  [null, ["?"], "this help"],
  [null, ["Esc"], "leave help, reason, marking"],
];

export const helpFor = (job) => HELP.filter(([only]) => only === null || only === job).map(([, ...row]) => row);

const LETTERS = {
  z: "undo", s: "skip", r: "reason", d: "point", o: "outline", f: "fit", p: "actual", y: "yes", n: "no",
};
const NAMED = {
  Enter: "next", Escape: "leave", ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down",
  PageUp: "question-before", PageDown: "question-after", Backspace: "remove", Delete: "remove", F1: "help",
};
const PRINTED = { "?": "help", "+": "zoom-in", "=": "zoom-in", "-": "zoom-out", "−": "zoom-out", _: "zoom-out" };
const REPEATING = new Set(["left", "right", "up", "down", "zoom-in", "zoom-out"]);

function letter(event) {
  const printed = event.key.toLowerCase();
  if (/^[a-z]$/.test(printed)) return printed;
  // Keyboards of other scripts: the letter that is in the place.
  return event.key.length === 1 && /^Key[A-Z]$/.test(event.code) ? event.code.slice(3).toLowerCase() : null;
}

/**
 * @param {KeyboardEvent} event
 * @returns {{name: string, number?: number, shift: boolean}|null} null: not for us.
 */
export function actionOf(event) {
  if (event.isComposing || event.altKey) return null;
  if (event.ctrlKey || event.metaKey) {
    return letter(event) === "z" && !event.shiftKey && !event.repeat ? { name: "undo", shift: false } : null;
  }
  const shift = event.shiftKey;
  const found = (name, more = {}) => (event.repeat && !REPEATING.has(name) ? { name: "nothing" } : { name, shift, ...more });
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  if (digit && (event.code.startsWith("Digit") || /^\d$/.test(event.key))) {
    return found("digit", { number: Number(digit[1]) });
  }
  if (event.code === "Space") return found("compare");
  if (event.code === "BracketLeft") return found("candidate-before");
  if (event.code === "BracketRight") return found("candidate-after");
  if (Object.hasOwn(NAMED, event.key)) return found(NAMED[event.key]);
  if (Object.hasOwn(PRINTED, event.key)) return found(PRINTED[event.key]);
  const name = LETTERS[letter(event)];
  return name ? found(name) : null;
}
