// The page's connection and what it shows. Commands go out as JSON; texts and pictures come in (play/messages.py).
import { Controls } from "./controls.js";
import { Pane, judge } from "./pane.js";

const $ = (id) => document.getElementById(id);
const RETRY_MS = 2000;
let socket = null;
let panes = [];
let facts = null;
let state = null;
let waiting = null; // for the simulator or for a free place

function send(command) {
  complain(""); // the last complaint is about something else
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(command));
}

const controls = new Controls(send);

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  socket.binaryType = "arraybuffer";
  socket.addEventListener("message", (event) => {
    if (typeof event.data === "string") receive(JSON.parse(event.data));
    else receivePicture(event.data);
  });
  socket.addEventListener("close", (event) => {
    controls.enable(false);
    if (event.reason === "busy") say("All places are taken by other pages. This one will try again.");
    else say("The connection is lost. Trying again.");
    setTimeout(connect, RETRY_MS);
  });
}

function say(text, instruction) {
  if (waiting === text + (instruction || "")) return; // a screen reader would read it again
  waiting = text + (instruction || "");
  const status = $("status");
  status.textContent = text;
  if (instruction) {
    const quoted = document.createElement("q");
    quoted.textContent = instruction;
    status.append(" ", quoted);
  }
}

function complain(text) {
  $("error").hidden = !text;
  $("error").textContent = text || "";
}

const receivers = {
  starting: () => say("The simulator is starting."),
  hello: (message) => {
    facts = message;
    state = null;
    $("suite").textContent = `anyvla play · ${facts.suite}`;
    document.title = `anyvla play: ${facts.suite}`;
    $("about").textContent =
      `${facts.policies.join(" and ")} on the robot ${facts.robot}, at ${facts.hz} actions a second. The yellow path is ` +
      "where the policy means to take the gripper: solid what it executes, dotted what it predicts beyond that. The blue " +
      "line is where the gripper has been.";
    $("table").classList.toggle("two", facts.policies.length > 1);
    panes = facts.policies.map((name, number) => new Pane(number, name, facts, controls));
    $("panes").replaceChildren(...panes.map((pane) => pane.figure));
    controls.offer(facts);
    say("The simulator is starting.");
  },
  state: (message) => {
    const before = state;
    state = message;
    controls.show(state);
    for (const pane of panes) pane.show(state);
    say(...describe(state));
    controls.remember(before, state, facts);
  },
  chunk: (message) => panes[message.robot].predict(message),
  disturbed: (message) => {
    if (!message.done) say("There is nothing to move: the object is where it started.");
  },
  error: (message) => complain(message.text),
  failed: (message) => {
    complain(`The simulator failed: ${message.text}`);
    socket.close();
  },
};

function describe(now) {
  if (now.mode === "loading") return ["The policy is loading; then it will obey", now.instruction];
  if (now.mode === "acting") return ["Obeying", now.instruction];
  if (now.mode === "paused") return ["Paused, on its way to", now.instruction];
  if (now.outcomes.some(Boolean)) {
    const verdicts = now.outcomes.map((outcome) => judge(outcome, now)).filter(Boolean).map((verdict) => verdict.text);
    return [`${[...new Set(verdicts)].join("; ")}. Give another instruction, or a new start.`];
  }
  if (now.gave_up) return ["It reached no goal and stopped. Try a new start, or another instruction."];
  if (now.instruction) return ["Stopped."];
  return ["Ready. Type an instruction or choose one; you can interrupt it with another at any time."];
}

function receive(message) {
  if (message.is in receivers) receivers[message.is](message);
}

function receivePicture(data) {
  const length = new DataView(data).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const pane = panes[header.robot];
  if (pane) pane.draw(header, new Blob([new Uint8Array(data, 4 + length)], { type: "image/jpeg" }));
}

connect();
