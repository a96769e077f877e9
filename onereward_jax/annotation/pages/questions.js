/** The questions of an item and the choices under its candidates: what is shown follows from its answers. */

import { button, element, pressed, setText } from "./dom.js";

const VERDICTS = ["left", "right"];
const SIDES = { left: "Left", right: "Right", same: "No difference" };

/** Sizes of a bar of choices, in CSS pixels, as style.css makes them. */
export function barSizes(job, questions) {
  if (job === "best_worst") return { below: { width: 190, height: 50 }, beside: { width: 90, height: 130 } };
  if (job === "good_same_bad") return { below: { width: 150, height: 50 }, beside: { width: 104, height: 90 } };
  const most = Math.max(...questions.map(({ scale }) => scale[1] - scale[0] + 1));
  return { below: { width: 32 + 48 * most, height: 50 }, beside: { width: 60, height: 30 + 48 * most } };
}

/** Sizes that the questions need at the side, at the bottom, and in a cell among the images. */
export function panelSizes(job, questions, width) {
  const count = questions.length;
  const same = job === "best_worst" ? 50 : 0; // "no difference"
  const columns = count > 4 ? 3 : 2;
  return {
    side: { width: 264, height: 100 + same + 46 * count },
    bottom: { width, height: count === 1 ? 54 : 74 + 46 * Math.ceil((120 * count) / (width - 306)) },
    cell: { width: 120 * columns + 8, height: 100 + same + 46 * Math.ceil(count / columns) },
  };
}

export class Questions {
  /**
   * @param {object} nodes questions, help, choices: elements of the panel.
   * @param {object} events go(question index), choose(role, candidate), verdict(side), same(), mark(candidate, mark).
   */
  constructor(nodes, events) {
    this.nodes = nodes;
    this.events = events;
  }

  /** Build for an item; `panes` are those of its candidates, `source` that of its source or null. */
  show(item, panes, source) {
    this.item = item;
    this.panes = panes;
    const { job, questions } = item.answers;
    this.chips = questions.map((question, index) => {
      const made = button({ class: "chip" }, element("span", { class: "name" }, question.label), element("span", { class: "state" }));
      made.addEventListener("focus", () => this.events.go(index));
      made.addEventListener("click", () => this.events.go(index));
      return made;
    });
    this.nodes.questions.replaceChildren(...this.chips);
    this.nodes.questions.dataset.count = questions.length > 4 ? "many" : questions.length > 1 ? "few" : "one";
    this.nodes.choices.replaceChildren();
    if (job !== "rating") {
      this.same = button({ class: "same", title: "No difference (0)" }, "No difference ", element("kbd", {}, "0"));
      this.same.addEventListener("click", () => this.events.same());
      // Between the two where the source stands between them.
      const between = job === "good_same_bad" && source;
      if (between) source.bar.append(this.same);
      else this.nodes.choices.append(this.same);
    }
    this.bars = panes.map((pane) => this.bar(pane, job));
    this.update();
  }

  bar(pane, job) {
    const name = element("span", { class: "number" }, job === "good_same_bad" ? "" : `${pane.candidate + 1}`);
    const choices = element("div", { class: "marks" });
    pane.bar.replaceChildren(name, choices);
    const add = (text, label, kind, act) => {
      const made = button({ class: `choice ${kind}`, "aria-label": label }, text);
      made.addEventListener("click", act);
      choices.append(made);
      return made;
    };
    if (job === "best_worst") {
      return ["best", "worst"].map((role) => ({
        role,
        node: add(role === "best" ? "▲ Best" : "▼ Worst", `${pane.label}: ${role}`, role, () =>
          this.events.choose(role, pane.candidate),
        ),
      }));
    }
    if (job === "good_same_bad") {
      const side = VERDICTS[pane.candidate];
      const node = add(`${SIDES[side]} is better`, `${pane.label} is better`, "best", () => this.events.verdict(side));
      return [{ side, node }];
    }
    return choices; // of the question's scale: made by `update`
  }

  /** Bring what is shown in line with the answers. */
  update() {
    const { answers, question: active, candidate } = this.item;
    const question = answers.questions[active];
    const value = answers.of(question);
    answers.questions.forEach((other, index) => {
      const chip = this.chips[index];
      const complete = answers.complete(other);
      chip.classList.toggle("complete", complete);
      if (index === active) chip.setAttribute("aria-current", "true");
      else chip.removeAttribute("aria-current");
      setText(chip.querySelector(".state"), this.summary(other));
      chip.setAttribute("aria-label", `${other.label}: ${this.summary(other) || "not answered"}`);
    });
    setText(this.nodes.help, question.help);
    if (this.same && answers.job !== "rating") pressed(this.same, Boolean(value.same) || value.verdict === "same");
    this.panes.forEach((pane, number) => {
      const bars = this.bars[number];
      if (answers.job === "rating") this.scale(pane, bars, question, value.marks[number]);
      else for (const { role, side, node } of bars) pressed(node, side ? value.verdict === side : value[role] === number);
      pane.figure.classList.toggle("best", value.best === number || Boolean(value.verdict) && value.verdict === VERDICTS[number]);
      pane.figure.classList.toggle("worst", value.worst === number);
      pane.figure.classList.toggle("active", answers.job === "rating" && number === candidate);
    });
  }

  /** Buttons of a mark for each step of the question's scale. */
  scale(pane, choices, question, mark) {
    const [lowest, highest] = question.scale;
    const yesNo = lowest === 0 && highest === 1;
    if (choices.dataset.question !== question.name) {
      choices.dataset.question = question.name;
      const marks = yesNo ? [1, 0] : Array.from({ length: highest - lowest + 1 }, (_, step) => lowest + step);
      choices.replaceChildren(
        ...marks.map((step) => {
          const text = yesNo ? ["No", "Yes"][step] : `${step}`;
          const made = button({ class: "choice mark", "aria-label": `${pane.label}, ${question.label}: ${text}`, "data-mark": step }, text);
          made.addEventListener("click", () => this.events.mark(pane.candidate, step));
          return made;
        }),
      );
    }
    for (const node of choices.children) pressed(node, Number(node.dataset.mark) === mark);
  }

  summary(question) {
    const value = this.item.answers.of(question);
    const number = (candidate) => (candidate === null ? "–" : `${candidate + 1}`);
    if (value.marks) {
      if (value.marks.every((mark) => mark === null)) return "";
      const text = (mark) => (mark === null ? "–" : question.scale[1] === 1 ? (mark ? "yes" : "no") : `${mark}`);
      return value.marks.map(text).join(" ");
    }
    if (value.same || value.verdict === "same") return "same";
    if (value.verdict) return SIDES[value.verdict].toLowerCase();
    if (value.best === null || value.best === undefined) {
      return value.worst === null || value.worst === undefined ? "" : `▼ ${number(value.worst)}`;
    }
    return `▲ ${number(value.best)}` + (value.worst === null ? "" : ` ▼ ${number(value.worst)}`);
  }

  /** Focus the active question, so that Tab leads to the next one and Space and Enter are nobody else's. */
  focus() {
    this.chips[this.item.question].focus({ preventScroll: true });
  }
}
