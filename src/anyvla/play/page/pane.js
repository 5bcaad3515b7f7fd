// One robot: its picture with the path that its policy predicts, the outcome, the times, and the chunk.
import { Charts } from "./charts.js";

const SVG = "http://www.w3.org/2000/svg";

export function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

export const title = (task) => task.replaceAll("-", " ");

export function judge(outcome, state) {
  if (!outcome) return null;
  if (state.instructed === null) return { tone: "open", sign: "●", text: `Reached: ${title(outcome)}` };
  if (state.instructed === outcome) return { tone: "good", sign: "✓", text: `Goal reached: ${title(outcome)}` };
  return { tone: "bad", sign: "✗", text: `Reached ${title(outcome)} instead` };
}

export class Pane {
  constructor(number, name, facts, controls) {
    this.number = number;
    this.hz = facts.hz;
    this.speed = 1;
    this.chunk = null;
    this.figure = element("figure", "pane");
    this.picture = element("div", "picture");
    this.canvas = element("canvas");
    [this.canvas.width, this.canvas.height] = [640, 480];
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `The robot of ${name}`);
    this.paths = document.createElementNS(SVG, "svg");
    this.paths.setAttribute("viewBox", "0 0 1 1");
    this.paths.setAttribute("preserveAspectRatio", "none");
    this.paths.setAttribute("aria-hidden", "true");
    this.trail = []; // where the gripper was at each prediction
    this.lines = Object.fromEntries(["trail", "edge", "done", "rest", "next"].map((kind) => [kind, this.line(kind)]));
    this.wait = element("div", "wait", "The first picture is on its way");
    this.ring = controls.makeRing(this.picture);
    this.outcome = element("div", "outcome");
    this.outcome.hidden = true;
    this.picture.append(this.canvas, this.paths, this.ring, this.wait, this.outcome);
    const caption = element("figcaption");
    const who = element("div", "who");
    this.count = element("span", "count", "");
    who.append(element("span", "", name), this.count);
    this.times = element("p", "times", " ");
    this.charts = new Charts(facts.groups);
    caption.append(who, this.times, this.charts.box);
    this.figure.append(this.picture, caption);
  }

  line(kind) {
    const made = document.createElementNS(SVG, "polyline");
    made.setAttribute("class", `path ${kind}`);
    this.paths.append(made);
    return made;
  }

  async draw(header, blob) {
    const order = (this.order = (this.order || 0) + 1);
    const image = await createImageBitmap(blob);
    if (order < this.drawn) return; // a newer picture was decoded first
    this.drawn = order;
    if (this.canvas.width !== image.width || this.canvas.height !== image.height) {
      [this.canvas.width, this.canvas.height] = [image.width, image.height];
    }
    this.canvas.getContext("2d").drawImage(image, 0, 0);
    image.close();
    this.wait.hidden = true;
    this.figure.dataset.step = header.step;
    this.count.textContent = header.step ? `action ${header.step}` : "";
    const parts = ["act", "observe", "simulate", "draw"].filter((part) => part in header.ms);
    const times = parts.map((part) => `${part} ${header.ms[part].toFixed(part === "simulate" ? 1 : 0)} ms`);
    if (header.hz && header.step) times.unshift(`${header.hz.toFixed(0)} of ${this.hz * this.speed} actions a second`);
    this.times.textContent = header.step ? times.join(" · ") : " ";
    this.advance(header.executed);
  }

  predict(chunk) {
    this.chunk = chunk;
    this.charts.show(chunk);
    if (chunk.path) this.trail.push(chunk.path[0]);
    this.place(chunk.object);
    this.advance(0);
  }

  place(object) {
    this.ring.hidden = !object;
    if (!object) return;
    this.ring.style.left = `${100 * object[0]}%`;
    this.ring.style.top = `${100 * object[1]}%`;
  }

  advance(executed) {
    const { path, execute } = this.chunk || {};
    if (this.chunk) this.charts.advance(executed);
    const join = (points) => points.map((point) => point.join(",")).join(" ");
    const part = (from, to) => (path ? join(path.slice(from, to)) : "");
    this.lines.trail.setAttribute("points", join(this.trail));
    this.lines.edge.setAttribute("points", part(executed, execute + 1));
    this.lines.done.setAttribute("points", part(0, executed + 1));
    this.lines.next.setAttribute("points", part(executed, execute + 1));
    this.lines.rest.setAttribute("points", part(execute));
  }

  show(state) {
    const verdict = judge(state.outcomes[this.number], state);
    const gaveUp = !verdict && state.gave_up ? { tone: "open", sign: "–", text: "No goal reached" } : null;
    const shown = verdict || gaveUp;
    this.figure.className = `pane ${shown ? shown.tone : ""}`;
    this.outcome.hidden = !shown;
    if (shown) {
      const steps = state.steps[this.number];
      const said = element("span", "", shown.text);
      said.append(element("small", "", `${steps} actions, ${(steps / this.hz).toFixed(1)} s of the robot's time`));
      const sign = element("span", "sign", shown.sign);
      sign.setAttribute("aria-hidden", "true");
      this.outcome.className = `outcome ${shown.tone}`;
      this.outcome.replaceChildren(sign, said);
    }
    this.speed = state.speed;
    this.place(state.object);
    this.figure.classList.toggle("acting", state.mode === "acting");
    if (!state.instruction) this.charts.clear();
    if (!state.instruction || state.steps[this.number] === 0) this.trail = [];
    if (state.mode === "idle") this.forget();
  }

  forget() {
    this.chunk = null;
    for (const line of Object.values(this.lines)) line.setAttribute("points", "");
    this.lines.trail.setAttribute("points", this.trail.map((point) => point.join(",")).join(" "));
  }
}
