const DASHES = ["", "7 4", "2 4", "10 4 2 4", "4 2", "12 5", "1 3", "8 3 1 3"];
// A ninth line has the first colour again, and another dash.
const dashed = (index) => DASHES[(index + Math.floor(index / 8)) % 8];
const colour = (index) => `var(--s${index % 8})`;

// Charts are drawn at the width they have, so that their text is as large on a phone as on a desk.
const drawings = [];

function keepDrawn(holder, render) {
  let width = 0;
  const again = () => {
    const now = Math.round(holder.clientWidth);
    if (now && now !== width) {
      width = now;
      render(now);
    }
  };
  new ResizeObserver(again).observe(holder);
  drawings.push({ holder, again });
  again();
}

// Paper is narrower than most screens, and nothing is observed while it is printed.
function redrawAt(width) {
  document.body.style.width = width;
  drawings.filter(({ holder }) => holder.isConnected).forEach(({ again }) => again());
}
window.addEventListener("beforeprint", () => redrawAt("680px"));
window.addEventListener("afterprint", () => redrawAt(""));

function ticks(low, high, about) {
  const rough = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((unit) => unit * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step)
    found.push(Number(at.toPrecision(12)));
  return found;
}

// All marks of an axis in one unit.
function marked(marks) {
  const most = Math.max(...marks.map(Math.abs));
  const [unit, name] = most >= 1e6 ? [1e6, " M"] : most >= 1e4 ? [1e3, " k"] : [1, ""];
  // As many digits as tell neighbours apart.
  const digits = [0, 1, 2, 3, 4].find((n) =>
    marks.every((mark) => Math.abs(Number((mark / unit).toFixed(n)) - mark / unit) < 1e-9 * (most / unit)),
  );
  const write = (value) => (digits === undefined ? trim(value) : String(Number(value.toFixed(digits))));
  return (mark) => (mark === 0 ? "0" : write(mark / unit) + name);
}

function extent(values, pad) {
  const low = Math.min(...values),
    high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * pad;
  return [low - room, high + room];
}

function legend(series) {
  return make(
    "ul",
    { class: "legend" },
    series.map((one) =>
      make(
        "li",
        {},
        draw(
          "svg",
          { viewBox: "0 0 28 10", "aria-hidden": "true" },
          draw("line", {
            x1: 1,
            x2: 27,
            y1: 5,
            y2: 5,
            class: one.reference ? "reference" : "line",
            style: one.reference ? null : `stroke: ${colour(one.colour)}`,
            "stroke-dasharray": one.reference ? null : dashed(one.dash || 0),
          }),
        ),
        one.name,
      ),
    ),
  );
}
