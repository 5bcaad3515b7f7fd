// Everything that a visitor can press, type, drag or reach with the keyboard.
import { element, judge, title } from "./pane.js";

const $ = (id) => document.getElementById(id);
const TABS = 8; // scenes up to which each has a button
const NUDGE = 0.04; // of the picture, for an arrow
const DRAG_MS = 70; // between the commands of a drag
const REMEMBERED = 8;

export class Controls {
  constructor(send) {
    this.send = send;
    this.state = null;
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.instruct($("text").value.trim() || $("text").placeholder);
    });
    $("pause").addEventListener("click", () => this.togglePause());
    $("step").addEventListener("click", () => send({ do: "step" }));
    $("fresh").addEventListener("click", () => this.startAnew());
    $("seed").addEventListener("change", () => this.reset($("seed").valueAsNumber));
    $("knock").addEventListener("click", () => send({ do: "disturb", kind: "open" }));
    $("push").addEventListener("click", () => send({ do: "disturb", kind: "push" }));
    for (const button of document.querySelectorAll("#pad button")) {
      const [x, y] = button.dataset.shift.split(" ").map(Number);
      button.addEventListener("click", () => this.move(x * NUDGE, y * NUDGE));
    }
    for (const button of document.querySelectorAll("#speeds button")) {
      button.addEventListener("click", () => send({ do: "speed", speed: Number(button.dataset.speed) }));
    }
    document.addEventListener("keydown", (event) => this.press(event));
    this.enable(false);
  }

  instruct(text) {
    $("text").value = text;
    this.send({ do: "instruct", text });
  }

  move(x, y) {
    this.send({ do: "move", shift: [x, y] });
  }

  reset(seed) {
    this.send({ do: "reset", seed }); // the server says what is wrong with it
  }

  startAnew() {
    this.reset(((this.state ? this.state.seed : 0) + 1) % 2147483648);
  }

  togglePause() {
    this.send({ do: this.state && this.state.mode === "paused" ? "resume" : "pause" });
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = event.target;
    if (at instanceof HTMLInputElement || at instanceof HTMLSelectElement) {
      if (event.key === "Escape") at.blur();
      return;
    }
    if (event.key === " " && (at instanceof HTMLButtonElement || at.tagName === "SUMMARY")) return; // presses it
    const keys = {
      " ": () => $("pause").click(), ".": () => $("step").click(), r: () => $("fresh").click(),
      k: () => $("knock").click(), p: () => $("push").click(), "/": () => $("text").focus(),
    };
    const action = keys[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // A ring around the object, to drag it, or to move it with the arrow keys.
  makeRing(picture) {
    const ring = element("button", "ring");
    ring.type = "button";
    ring.hidden = true;
    ring.setAttribute("aria-label", "The object: drag it, or move it with the arrow keys");
    let from = null;
    let sent = 0;
    ring.addEventListener("pointerdown", (event) => {
      from = [event.clientX, event.clientY];
      ring.setPointerCapture(event.pointerId);
    });
    const drag = (event, last) => {
      if (!from || (!last && event.timeStamp - sent < DRAG_MS)) return;
      const { width, height } = picture.getBoundingClientRect();
      const moved = [(event.clientX - from[0]) / width, (event.clientY - from[1]) / height];
      const shift = moved.map((d) => Math.max(-1, Math.min(1, d)));
      if (shift[0] || shift[1]) this.move(...shift);
      from = last ? null : [event.clientX, event.clientY];
      sent = event.timeStamp;
    };
    ring.addEventListener("pointermove", (event) => drag(event, false));
    ring.addEventListener("pointerup", (event) => drag(event, true));
    ring.addEventListener("pointercancel", () => { from = null; });
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    ring.addEventListener("keydown", (event) => {
      if (!(event.key in arrows)) return;
      event.preventDefault();
      this.move(...arrows[event.key].map((d) => d * NUDGE));
    });
    return ring;
  }

  enable(on) {
    for (const control of document.querySelectorAll("button, input, select")) control.disabled = !on;
  }

  offer(facts) {
    this.facts = facts;
    this.shownScene = null;
    $("disturb-field").hidden = false;
    $("knock").hidden = !facts.disturbances.includes("open");
    $("push").hidden = !facts.disturbances.includes("push");
    $("scenes-field").hidden = facts.scenes.length < 2;
    $("scenes").replaceChildren(...(facts.scenes.length <= TABS ? this.makeTabs() : [this.makeSelect()]));
    $("phrases").replaceChildren(...facts.scenes.flatMap((scene) => scene.tasks).map((task) => {
      const option = element("option");
      option.value = task.trained[0] || "";
      return option;
    }));
    this.enable(true);
  }

  showScene(task) {
    this.send({ do: "scene", task, seed: this.state ? this.state.seed : 0 });
  }

  makeTabs() {
    return this.facts.scenes.map((scene) => {
      const button = element("button", "", title(scene.scene));
      button.type = "button";
      button.dataset.scene = scene.scene;
      button.addEventListener("click", () => this.showScene(scene.tasks[0].task));
      return button;
    });
  }

  makeSelect() {
    const select = element("select");
    select.setAttribute("aria-label", "Scene");
    for (const scene of this.facts.scenes) {
      const option = element("option", "", title(scene.scene));
      option.value = scene.scene;
      select.append(option);
    }
    select.addEventListener("change", () => {
      this.showScene(this.facts.scenes.find((scene) => scene.scene === select.value).tasks[0].task);
    });
    return select;
  }

  chips(phrases) {
    return phrases.map((phrase) => {
      const chip = element("button", "", phrase);
      chip.type = "button";
      chip.addEventListener("click", () => this.instruct(phrase));
      return chip;
    });
  }

  showPhrases(name) {
    const { tasks } = this.facts.scenes.find((scene) => scene.scene === name);
    const others = this.facts.scenes.filter((scene) => scene.scene !== name).flatMap((scene) => scene.tasks).slice(0, 6);
    $("chips").replaceChildren(...this.chips(tasks.map((task) => task.trained[0]).filter(Boolean)));
    $("text").placeholder = (tasks[0].trained[0] || "an instruction");
    const groups = [
      ["In its demonstrations", tasks.flatMap((task) => task.trained.slice(1))],
      ["Never in its demonstrations", tasks.flatMap((task) => task.unseen)],
      ["Of other scenes", others.map((task) => task.trained[0]).filter(Boolean)],
    ].filter(([, phrases]) => phrases.length);
    $("phrasings").replaceChildren(...groups.flatMap(([heading, phrases]) => {
      const row = element("div", "chips");
      row.append(...this.chips(phrases));
      return [element("h3", "", heading), row];
    }));
    $("more").hidden = !groups.length;
    for (const tab of document.querySelectorAll("#scenes button")) {
      tab.setAttribute("aria-pressed", String(tab.dataset.scene === name));
    }
    const select = document.querySelector("#scenes select");
    if (select) select.value = name;
  }

  show(state) {
    this.state = state;
    if (this.shownScene !== state.scene) this.showPhrases(state.scene);
    this.shownScene = state.scene;
    if (document.activeElement !== $("seed")) $("seed").value = state.seed;
    const moving = state.mode === "acting" || state.mode === "paused";
    $("pause").disabled = $("step").disabled = !moving;
    $("pause").firstChild.textContent = state.mode === "paused" ? "Resume " : "Pause ";
    for (const button of document.querySelectorAll("#speeds button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.speed) === state.speed));
    }
    $("pad").hidden = !state.object;
  }

  // Add a line when an instruction has ended, by a goal or by another instruction.
  remember(before, now, facts) {
    if (!before || !before.instruction || before.mode === "idle") return;
    const same = before.instruction === now.instruction && now.mode !== "idle" && now.steps[0] >= before.steps[0];
    if (same) return;
    const line = element("li");
    line.append(element("q", "", before.instruction));
    now.outcomes.forEach((outcome, number) => {
      const verdict = judge(outcome, now);
      const text = verdict ? `${verdict.sign} ${title(outcome)}, ${now.steps[number]} actions` : "interrupted";
      const name = facts.policies.length > 1 ? `${number + 1}: ` : "";
      line.append(element("span", `mark ${verdict ? verdict.tone : "none"}`, name + (now.gave_up && !verdict ? "no goal" : text)));
    });
    const past = $("past");
    if (past.querySelector(".soft")) past.replaceChildren();
    past.prepend(line);
    while (past.children.length > REMEMBERED) past.lastChild.remove();
  }
}
