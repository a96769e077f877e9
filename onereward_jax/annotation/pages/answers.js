/** An annotator's answers to one item: what is chosen, what is missing, and what is sent. Knows no page. */

export const MOST_POINTS = 50;

const same = (first, second) => JSON.stringify(first) === JSON.stringify(second);
const copy = (value) => JSON.parse(JSON.stringify(value));

export class Answers {
  /**
   * @param {object} assignment as the server gave it.
   * @param {object|null} draft what `kept()` returned before a reload.
   */
  constructor(assignment, draft) {
    this.job = assignment.job;
    this.questions = assignment.questions;
    this.count = assignment.candidates.length;
    this.history = [];
    this.seconds = draft?.seconds ?? 0;
    this.state = draft?.state ?? this.given(assignment.previous);
  }

  /** The state of answers that were taken back, {answers, reason, points} as they were sent, or nothing chosen. */
  given(previous) {
    const { answers = [], reason, points } = previous ?? {};
    const state = { values: {}, reason: reason ?? "", points: copy(points ?? []) };
    for (const question of this.questions) {
      const answer = answers.find((one) => one.question === question.name);
      state.values[question.name] = answer ? this.value(answer) : this.nothing();
    }
    return state;
  }

  nothing() {
    if (this.job === "best_worst") return { best: null, worst: null, same: false };
    if (this.job === "good_same_bad") return { verdict: null };
    return { marks: Array(this.count).fill(null) };
  }

  value(answer) {
    if (this.job === "best_worst") return { best: answer.best, worst: answer.worst, same: answer.best === null };
    if (this.job === "good_same_bad") return { verdict: answer.verdict };
    return { marks: [...answer.marks] };
  }

  of(question) {
    return this.state.values[question.name];
  }

  complete(question) {
    const value = this.of(question);
    if (this.job === "best_worst") return value.same || (value.best !== null && value.worst !== null);
    if (this.job === "good_same_bad") return value.verdict !== null;
    return value.marks.every((mark) => mark !== null);
  }

  get finished() {
    return this.questions.every((question) => this.complete(question));
  }

  /** Change the state by a function of it; `undo` takes it back. */
  change(how) {
    const before = copy(this.state);
    how(this.state);
    if (!same(before, this.state)) this.history.push(before);
  }

  get undoable() {
    return this.history.length > 0;
  }

  /** @returns {number} the question whose answer was taken back, or -1. */
  undo() {
    const after = this.state;
    this.state = this.history.pop();
    return this.questions.findIndex(({ name }) => !same(after.values[name], this.state.values[name]));
  }

  /** `role` is "best" or "worst"; nothing is both. */
  choose(question, role, candidate) {
    this.change((state) => {
      const value = state.values[question.name];
      const other = role === "best" ? "worst" : "best";
      value.same = false;
      value[role] = candidate;
      if (value[other] === candidate) value[other] = null;
    });
  }

  noDifference(question) {
    this.change((state) => {
      state.values[question.name] =
        this.job === "best_worst" ? { best: null, worst: null, same: true } : { verdict: "same" };
    });
  }

  verdict(question, verdict) {
    this.change((state) => (state.values[question.name].verdict = verdict));
  }

  mark(question, candidate, mark) {
    this.change((state) => (state.values[question.name].marks[candidate] = mark));
  }

  /** @returns {boolean} false: there are as many as may be. */
  addPoint(candidate, x, y) {
    if (this.state.points.length >= MOST_POINTS) return false;
    const rounded = [x, y].map((value) => Math.round(Math.min(1, Math.max(0, value)) * 1e4) / 1e4);
    this.change((state) => state.points.push({ candidate, x: rounded[0], y: rounded[1] }));
    return true;
  }

  removePoint(index) {
    this.change((state) => state.points.splice(index, 1));
  }

  /** What a reload needs. */
  kept() {
    return { state: this.state, seconds: this.seconds };
  }

  /** The body of POST /api/votes, but for its key. */
  vote(assignment) {
    const answers = this.questions.map((question) => {
      const { same: equal, ...value } = this.of(question);
      return { question: question.name, ...value };
    });
    const { reason, points } = this.state;
    const seconds = Math.round(this.seconds * 100) / 100;
    return { assignment: assignment.id, answers, reason: reason.trim(), points, seconds };
  }
}
