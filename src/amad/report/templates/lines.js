/* Lines over one axis. The spec has a title, a name for those who hear it, xLabel and xUnit, y (how to write a value), and
   series of {name, points: [[x, y]], colour, dash, band: [[x, low, high]], thin: [[[x, y]]], reference}. It may have meaning
   (a line below the title), height, noLegend, tick (how to write a mark), zero and zeroX (an axis begins at 0), and bottom
   and top (the y axis ends there at most). */
function lineChart(holder, spec) {
  clear(holder);
  const drawn = spec.series.filter((one) => one.points.length);
  if (spec.title) holder.append(make("h4", {}, spec.title));
  if (spec.meaning) holder.append(make("p", { class: "note" }, spec.meaning));
  if (drawn.length > 1 || drawn.some((one) => one.reference))
    if (!spec.noLegend) holder.append(legend(drawn));
  const place = make("div", {});
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  const xs = [...new Set(drawn.flatMap((one) => (one.reference ? [] : one.points.map(([x]) => x))))].sort(
    (a, b) => a - b,
  );
  holder.append(
    place,
    make(
      "div",
      { class: "under" },
      asTable(
        [spec.xLabel, ...drawn.map((one) => one.name)],
        () =>
          xs.map((x) => [
            count(x),
            ...drawn.map((one) => {
              const found = one.reference ? one.points[0] : one.points.find(([at]) => at === x);
              return found && known(found[1]) ? spec.y(found[1]) : "–";
            }),
          ]),
        spec.name,
      ),
      readout,
    ),
  );
  let chosen = -1;
  keepDrawn(place, (width) => {
    clear(place);
    const height = spec.height || Math.max(200, Math.min(340, width * 0.45));
    const values = drawn
      .flatMap((one) => [
        ...one.points.map(([, y]) => y),
        ...(one.band || []).flatMap(([, l, h]) => [l, h]),
        ...(one.thin || []).flat().map(([, y]) => y),
      ])
      .filter(known);
    let [low, high] = extent(values, 0.06);
    if (spec.zero) low = 0;
    if (known(spec.top)) high = Math.min(high, spec.top);
    if (known(spec.bottom)) low = Math.max(low, spec.bottom);
    if (high <= low) high = low + 1;
    const marks = ticks(low, high, height / 55);
    const tick = spec.tick || marked(marks);
    const left = 14 + 7 * Math.max(...marks.map((mark) => tick(mark).length));
    const box = { left, right: width - 12, top: 8, bottom: height - 36 };
    const x0 = spec.zeroX ? 0 : xs[0],
      x1 = xs.at(-1) === x0 ? x0 + 1 : xs.at(-1);
    const X = (x) => box.left + ((x - x0) / (x1 - x0)) * (box.right - box.left);
    // What reaches beyond the axis, as an interval of a share may, ends at it.
    const Y = (y) =>
      box.bottom - ((Math.max(low, Math.min(high, y)) - low) / (high - low)) * (box.bottom - box.top);
    const path = (points) =>
      points
        .filter(([, y]) => known(y))
        .map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`)
        .join("");
    const svg = draw("svg", {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      tabindex: 0,
      "aria-label": `${spec.name}. ${summary(drawn, spec)} Arrow keys read values.`,
    });
    for (const mark of marks)
      svg.append(
        draw("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(mark), y2: Y(mark) }),
        draw("text", { x: box.left - 8, y: Y(mark) + 4, "text-anchor": "end" }, tick(mark)),
      );
    const xMarks = ticks(x0, x1, width / 90),
      xTick = marked(xMarks);
    for (const mark of xMarks)
      svg.append(
        draw("line", { class: "axis", x1: X(mark), x2: X(mark), y1: box.bottom, y2: box.bottom + 4 }),
        draw("text", { x: X(mark), y: box.bottom + 17, "text-anchor": "middle" }, xTick(mark)),
      );
    svg.append(
      draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
      draw("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, spec.xLabel),
    );
    for (const one of drawn) {
      const paint = `stroke: ${colour(one.colour)}`;
      if (one.reference) {
        svg.append(
          draw("line", {
            class: "reference",
            x1: box.left,
            x2: box.right,
            y1: Y(one.points[0][1]),
            y2: Y(one.points[0][1]),
          }),
        );
        continue;
      }
      const band = (one.band || []).filter(([, l]) => known(l));
      if (band.length > 1)
        svg.append(
          draw("path", {
            class: "band",
            style: `fill: ${colour(one.colour)}`,
            d:
              path(band.map(([x, l]) => [x, l])) +
              path([...band].reverse().map(([x, , h]) => [x, h])).replace("M", "L") +
              "Z",
          }),
        );
      for (const thin of one.thin || [])
        svg.append(draw("path", { class: "thin", style: paint, d: path(thin) }));
      svg.append(
        draw("path", {
          class: "line",
          style: paint,
          "stroke-dasharray": dashed(one.dash || 0),
          d: path(one.points),
        }),
      );
      if (one.points.length <= 30)
        for (const [x, y] of one.points)
          if (known(y))
            svg.append(
              draw("circle", {
                cx: X(x),
                cy: Y(y),
                r: one.points.length === 1 ? 4 : 2.75,
                style: `fill: ${colour(one.colour)}`,
              }),
            );
    }
    const cross = svg.appendChild(draw("g", {}));
    const point = (index) => {
      chosen = Math.max(0, Math.min(xs.length - 1, index));
      const x = xs[chosen];
      clear(cross).append(draw("line", { class: "cross", x1: X(x), x2: X(x), y1: box.top, y2: box.bottom }));
      const said = drawn
        .filter((one) => !one.reference)
        .flatMap((one) => {
          const found = one.points.find(([at]) => at === x);
          if (!found || !known(found[1])) return [];
          cross.append(
            draw("circle", { cx: X(x), cy: Y(found[1]), r: 4, style: `fill: ${colour(one.colour)}` }),
          );
          const band = (one.band || []).find(([at, l]) => at === x && known(l));
          return [
            (drawn.length > 1 ? one.name + " " : "") +
              spec.y(found[1]) +
              (band ? ` (${spec.y(band[1])} to ${spec.y(band[2])})` : ""),
          ];
        });
      readout.textContent = `${count(x)} ${spec.xUnit}: ${said.slice(0, 6).join(", ")}${said.length > 6 ? ", …" : ""}`;
    };
    svg.addEventListener("pointermove", (event) => {
      const at =
        x0 +
        ((((event.clientX - svg.getBoundingClientRect().left) * width) / svg.clientWidth - box.left) /
          (box.right - box.left)) *
          (x1 - x0);
      point(xs.reduce((best, x, i) => (Math.abs(x - at) < Math.abs(xs[best] - at) ? i : best), 0));
    });
    svg.addEventListener("pointerleave", () => {
      clear(cross);
      readout.textContent = "";
      chosen = -1;
    });
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
  return drawn
    .map((one) => {
      const last = one.points.at(-1);
      return one.reference
        ? `${one.name}: ${spec.y(last[1])}.`
        : `${one.name} ends at ${known(last[1]) ? spec.y(last[1]) : "no number"}.`;
    })
    .join(" ");
}
