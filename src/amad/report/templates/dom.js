const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

// Text only ever becomes text: no name from a run is read as markup.
function make(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function clear(node) {
  node.replaceChildren();
  return node;
}

const known = (value) => value !== null && value !== undefined;

function count(value) {
  return known(value) ? Math.round(value).toLocaleString("en-US") : "–";
}

function trim(value) {
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3)));
}

function scored(value) {
  return known(value)
    ? value.toFixed(data.score.digits) + (data.score.unit ? " " + data.score.unit : "")
    : "–";
}

// The student's layer, with the teacher's where it learns from several.
const pairName = (pair, pairs) =>
  pairs.some((other) => other !== pair && other.student === pair.student)
    ? `${pair.student} from ${pair.teacher}`
    : pair.student;

const percent = (share) => (100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0) + " %";

function table(columns, rows, caption) {
  return make(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    make(
      "table",
      {},
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          columns.map((name, i) => make("th", { scope: "col", class: i ? "n" : null }, name)),
        ),
      ),
      make(
        "tbody",
        {},
        rows.map((row) =>
          make(
            "tr",
            {},
            row.map((cell, i) => (i ? make("td", { class: "n" }, cell) : make("th", { scope: "row" }, cell))),
          ),
        ),
      ),
    ),
  );
}

// The table behind a chart is made when it is asked for.
function asTable(columns, rows, caption) {
  const details = make("details", {}, make("summary", {}, "As numbers"));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(table(columns, rows(), caption));
  });
  return details;
}
