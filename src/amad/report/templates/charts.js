const DASHES = ["", "7 4", "2 4", "10 4 2 4", "4 2", "12 5", "1 3", "8 3 1 3"];
const colour = (index) => `var(--s${index % 8})`;

// Charts are drawn at the width they have, so that their text is as large on a phone as on a desk.
const drawings = [];

function keepDrawn(holder, render) {
  let width = 0;
  const again = () => {
    const now = Math.round(holder.clientWidth);
    if (now && now !== width) { width = now; render(now); }
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
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

// All marks of an axis in one unit.
function marked(marks) {
  const most = Math.max(...marks.map(Math.abs));
  const [unit, name] = most >= 1e6 ? [1e6, " M"] : most >= 1e4 ? [1e3, " k"] : [1, ""];
  return (mark) => mark === 0 ? "0" : trim(mark / unit) + name;
}

function extent(values, pad) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * pad;
  return [low - room, high + room];
}

function legend(series) {
  return make("ul", { class: "legend" }, series.map((one) => make("li", {},
    draw("svg", { viewBox: "0 0 28 10", "aria-hidden": "true" },
      draw("line", { x1: 1, x2: 27, y1: 5, y2: 5, class: one.reference ? "reference" : "line", style: one.reference ? null : `stroke: ${colour(one.colour)}`, "stroke-dasharray": one.reference ? null : DASHES[one.dash || 0] })),
    one.name)));
}

/* Lines over one axis.
   spec: title, name (for those who hear it), xLabel, y: how to write a value, zero: the axis begins at 0, top: it ends there,
   series: [{name, points: [[x, y]], band: [[x, low, high]], thin: [[[x, y]]], colour, dash, reference}], height, onPick */
function lineChart(holder, spec) {
  clear(holder);
  const drawn = spec.series.filter((one) => one.points.length);
  if (spec.title) holder.append(make("h4", {}, spec.title));
  if (spec.meaning) holder.append(make("p", { class: "note" }, spec.meaning));
  if (drawn.length > 1 || drawn.some((one) => one.reference)) if (!spec.noLegend) holder.append(legend(drawn));
  const place = make("div", {});
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  const xs = [...new Set(drawn.flatMap((one) => one.reference ? [] : one.points.map(([x]) => x)))].sort((a, b) => a - b);
  holder.append(place, make("div", { class: "under" }, asTable([spec.xLabel, ...drawn.map((one) => one.name)],
    () => xs.map((x) => [count(x), ...drawn.map((one) => {
      const found = one.reference ? one.points[0] : one.points.find(([at]) => at === x);
      return found && known(found[1]) ? spec.y(found[1]) : "–";
    })]), spec.name), readout));
  let chosen = -1;
  keepDrawn(place, (width) => {
    clear(place);
    const height = spec.height || Math.max(200, Math.min(340, width * 0.45));
    const values = drawn.flatMap((one) => [...one.points.map(([, y]) => y), ...(one.band || []).flatMap(([, l, h]) => [l, h]), ...(one.thin || []).flat().map(([, y]) => y)]).filter(known);
    let [low, high] = extent(values, 0.06);
    if (spec.zero) low = 0;
    if (known(spec.top)) high = Math.min(high, spec.top);
    if (known(spec.bottom)) low = Math.max(low, spec.bottom);
    if (high <= low) high = low + 1;
    const marks = ticks(low, high, height / 55);
    const tick = spec.tick || marked(marks);
    const left = 14 + 7 * Math.max(...marks.map((mark) => tick(mark).length));
    const box = { left, right: width - 12, top: 8, bottom: height - 36 };
    const x0 = spec.zeroX ? 0 : xs[0], x1 = xs.at(-1) === x0 ? x0 + 1 : xs.at(-1);
    const X = (x) => box.left + (x - x0) / (x1 - x0) * (box.right - box.left);
    // What reaches beyond the axis, as an interval of a share may, ends at it.
    const Y = (y) => box.bottom - (Math.max(low, Math.min(high, y)) - low) / (high - low) * (box.bottom - box.top);
    const path = (points) => points.filter(([, y]) => known(y)).map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": `${spec.name}. ${summary(drawn, spec)} Arrow keys read values.` });
    for (const mark of marks) svg.append(
      draw("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(mark), y2: Y(mark) }),
      draw("text", { x: box.left - 8, y: Y(mark) + 4, "text-anchor": "end" }, tick(mark)));
    const xMarks = ticks(x0, x1, width / 90), xTick = marked(xMarks);
    for (const mark of xMarks) svg.append(
      draw("line", { class: "axis", x1: X(mark), x2: X(mark), y1: box.bottom, y2: box.bottom + 4 }),
      draw("text", { x: X(mark), y: box.bottom + 17, "text-anchor": "middle" }, xTick(mark)));
    svg.append(draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
      draw("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, spec.xLabel));
    for (const one of drawn) {
      const paint = `stroke: ${colour(one.colour)}`;
      if (one.reference) { svg.append(draw("line", { class: "reference", x1: box.left, x2: box.right, y1: Y(one.points[0][1]), y2: Y(one.points[0][1]) })); continue; }
      const band = (one.band || []).filter(([, l]) => known(l));
      if (band.length > 1) svg.append(draw("path", { class: "band", style: `fill: ${colour(one.colour)}`, d: path(band.map(([x, l]) => [x, l])) + path([...band].reverse().map(([x, , h]) => [x, h])).replace("M", "L") + "Z" }));
      for (const thin of one.thin || []) svg.append(draw("path", { class: "thin", style: paint, d: path(thin) }));
      svg.append(draw("path", { class: "line", style: paint, "stroke-dasharray": DASHES[one.dash || 0], d: path(one.points) }));
      if (one.points.length <= 30) for (const [x, y] of one.points) if (known(y)) svg.append(draw("circle", { cx: X(x), cy: Y(y), r: one.points.length === 1 ? 4 : 2.75, style: `fill: ${colour(one.colour)}` }));
    }
    const cross = svg.appendChild(draw("g", {}));
    const point = (index) => {
      chosen = Math.max(0, Math.min(xs.length - 1, index));
      const x = xs[chosen];
      clear(cross).append(draw("line", { class: "cross", x1: X(x), x2: X(x), y1: box.top, y2: box.bottom }));
      const said = drawn.filter((one) => !one.reference).flatMap((one) => {
        const found = one.points.find(([at]) => at === x);
        if (!found || !known(found[1])) return [];
        cross.append(draw("circle", { cx: X(x), cy: Y(found[1]), r: 4, style: `fill: ${colour(one.colour)}` }));
        const band = (one.band || []).find(([at, l]) => at === x && known(l));
        return [(drawn.length > 1 ? one.name + " " : "") + spec.y(found[1]) + (band ? ` (${spec.y(band[1])} to ${spec.y(band[2])})` : "")];
      });
      readout.textContent = `${count(x)} ${spec.xUnit}: ${said.slice(0, 6).join(", ")}${said.length > 6 ? ", …" : ""}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const at = x0 + ((event.clientX - svg.getBoundingClientRect().left) * width / svg.clientWidth - box.left) / (box.right - box.left) * (x1 - x0);
      point(xs.reduce((best, x, i) => Math.abs(x - at) < Math.abs(xs[best] - at) ? i : best, 0));
    });
    svg.addEventListener("pointerleave", () => { clear(cross); readout.textContent = ""; chosen = -1; });
    svg.addEventListener("keydown", (event) => {
      const from = chosen < 0 ? { ArrowRight: -1, ArrowLeft: xs.length }[event.key] : chosen;
      const to = { ArrowRight: from + 1, ArrowLeft: from - 1, Home: 0, End: xs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      point(to);
    });
    place.append(svg);
  });
}

function summary(drawn, spec) {
  return drawn.map((one) => {
    const last = one.points.at(-1);
    return one.reference ? `${one.name}: ${spec.y(last[1])}.` : `${one.name} ends at ${known(last[1]) ? spec.y(last[1]) : "no number"}.`;
  }).join(" ");
}

/* Points with names. spec: title, name, xLabel, x: how to write one, points: [{name, x, y, low, high, xLow, xHigh, colour, teacher}] */
function scatter(holder, spec) {
  clear(holder);
  holder.append(make("h4", {}, spec.title));
  const points = spec.points.filter((one) => known(one.x) && known(one.y));
  if (!points.length) { holder.append(make("p", { class: "note" }, spec.none)); return; }
  const place = make("div", {});
  holder.append(place);
  holder.append(asTable(["model", spec.xLabel, data.score.name], () => points.map((one) => [one.name, spec.x(one.x), scored(one.y)]), spec.name));
  if (spec.note) holder.append(make("p", { class: "note" }, spec.note));
  keepDrawn(place, (width) => {
    clear(place);
    const height = Math.max(220, Math.min(320, width * 0.6));
    let [low, high] = extent(points.flatMap((one) => [one.y, one.low, one.high]).filter(known), 0.16);
    if (data.score.unit === "%") [low, high] = [Math.max(low, 0), Math.min(high, 100)];
    const marks = ticks(low, high, height / 55);
    const box = { left: 14 + 7 * Math.max(...marks.map((mark) => short(mark).length)), right: width - 16, top: 10, bottom: height - 36 };
    const most = Math.max(...points.flatMap((one) => [one.x, one.xHigh]).filter(known)) * 1.08;
    const X = (x) => box.left + x / most * (box.right - box.left);
    const Y = (y) => box.bottom - (Math.max(low, Math.min(high, y)) - low) / (high - low) * (box.bottom - box.top);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spec.name}. ` + points.map((one) => `${one.name}: ${scored(one.y)} at ${spec.x(one.x)}.`).join(" ") });
    for (const mark of marks) svg.append(draw("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(mark), y2: Y(mark) }), draw("text", { x: box.left - 8, y: Y(mark) + 4, "text-anchor": "end" }, short(mark)));
    const xMarks = ticks(0, most, width / 110), xTick = spec.tick || marked(xMarks);
    for (const mark of xMarks) svg.append(draw("line", { class: "axis", x1: X(mark), x2: X(mark), y1: box.bottom, y2: box.bottom + 4 }), draw("text", { x: X(mark), y: box.bottom + 17, "text-anchor": "middle" }, xTick(mark)));
    svg.append(draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }), draw("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, spec.xLabel));
    const labels = [];
    points.forEach((one) => {
      const paint = one.teacher ? "var(--teacher)" : colour(one.colour);
      const x = X(one.x), y = Y(one.y);
      if (known(one.low)) svg.append(draw("line", { x1: x, x2: x, y1: Y(one.low), y2: Y(one.high), style: `stroke: ${paint}`, "stroke-width": 1.5 }));
      if (known(one.xLow)) svg.append(draw("line", { x1: X(one.xLow), x2: X(one.xHigh), y1: y, y2: y, style: `stroke: ${paint}`, "stroke-width": 1.5 }));
      svg.append(one.teacher ? draw("rect", { x: x - 6, y: y - 6, width: 12, height: 12, style: `fill: ${paint}` })
        : one.colour % 2 ? draw("path", { d: `M${x} ${y - 8}l7.5 13h-15z`, style: `fill: ${paint}` })
        : draw("circle", { cx: x, cy: y, r: 6.5, style: `fill: ${paint}` }));
      const left = x > (box.left + box.right) / 2;
      let at = y + 4;
      while (labels.some((other) => other.left === left && Math.abs(other.at - at) < 15)) at += 15;
      labels.push({ left, at });
      svg.append(draw("text", { class: "label", x: left ? x - 13 : x + 13, y: at, "text-anchor": left ? "end" : "start" }, one.name));
    });
    place.append(svg);
  });
}
