// The chunk as curves, a small chart for each group of the action. An action is held, so curves are steps.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 100;
const HEIGHT = 40;
const EDGE = 4;

function shape(tag, name, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  made.setAttribute("class", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export class Charts {
  constructor(groups) {
    this.box = document.createElement("div");
    this.box.className = "charts";
    let first = 0;
    this.charts = groups.map((group) => {
      const chart = new Chart(group, first);
      first += group.dims.length;
      this.box.append(chart.box);
      return chart;
    });
  }

  show(chunk) {
    for (const chart of this.charts) chart.show(chunk.values, chunk.execute);
  }

  advance(executed) {
    for (const chart of this.charts) chart.advance(executed);
  }

  clear() {
    for (const chart of this.charts) chart.clear();
  }
}

class Chart {
  constructor(group, first) {
    this.first = first;
    this.low = -0.25; // the range grows with the values, so that curves do not jump between chunks
    this.high = 0.25;
    this.count = 1;
    this.box = document.createElement("div");
    this.box.className = "chart";
    const legend = document.createElement("p");
    legend.className = "legend";
    legend.textContent = group.unit ? `${group.name}, ${group.unit}` : group.name;
    if (group.dims.length > 1) {
      group.dims.forEach((dim, number) => {
        const label = document.createElement("b");
        label.className = `c${(first + number) % 6}`;
        label.textContent = dim;
        legend.append(label);
      });
    }
    this.svg = shape("svg", "", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `The predicted actions: ${group.name}`,
    });
    this.passed = shape("rect", "passed", { x: 0, y: 0, width: 0, height: HEIGHT });
    this.zero = shape("line", "zero", { x1: 0, x2: WIDTH });
    this.end = shape("line", "end", { y1: 0, y2: HEIGHT });
    this.curves = group.dims.map((_, number) => shape("path", `c${(first + number) % 6}`));
    this.now = shape("line", "now", { y1: 0, y2: HEIGHT });
    this.svg.append(this.passed, this.zero, this.end, ...this.curves, this.now);
    this.box.append(legend, this.svg);
    this.clear();
  }

  y(value) {
    return HEIGHT - EDGE - ((value - this.low) / (this.high - this.low)) * (HEIGHT - 2 * EDGE);
  }

  show(values, execute) {
    this.count = values.length;
    const step = WIDTH / this.count;
    const own = this.curves.map((_, number) => values.map((action) => action[this.first + number]));
    this.low = Math.min(this.low, ...own.flat());
    this.high = Math.max(this.high, ...own.flat());
    own.forEach((dim, number) => {
      const parts = dim.map((value, i) => `${i ? "V" : `M0 `}${this.y(value)}H${(i + 1) * step}`);
      this.curves[number].setAttribute("d", parts.join(""));
    });
    for (const side of ["y1", "y2"]) this.zero.setAttribute(side, this.y(0));
    for (const side of ["x1", "x2"]) this.end.setAttribute(side, execute * step);
    this.end.style.display = this.now.style.display = "";
  }

  advance(executed) {
    const x = (executed / this.count) * WIDTH;
    this.passed.setAttribute("width", x);
    for (const side of ["x1", "x2"]) this.now.setAttribute(side, x);
  }

  clear() {
    for (const curve of this.curves) curve.setAttribute("d", "");
    this.passed.setAttribute("width", 0);
    for (const side of ["y1", "y2"]) this.zero.setAttribute(side, this.y(0));
    this.end.style.display = this.now.style.display = "none";
  }
}
