/* Points with names. The spec has a title, a name for those who hear it, xLabel, x (how to write a value), none (what to say
   without points) and points of {name, x, y, low, high, xLow, xHigh, colour, teacher}; it may have tick and a note. */
function scatter(holder, spec) {
  clear(holder);
  holder.append(make("h4", {}, spec.title));
  const points = spec.points.filter((one) => known(one.x) && known(one.y));
  if (!points.length) {
    holder.append(make("p", { class: "note" }, spec.none));
    return;
  }
  const place = make("div", {});
  const keys = points.map((one) =>
    make(
      "li",
      {},
      draw("svg", { viewBox: "0 0 28 18", "aria-hidden": "true" }, marker(one, 14, 9)),
      one.name,
    ),
  );
  holder.append(make("ul", { class: "legend markers" }, keys), place);
  holder.append(
    asTable(
      ["model", spec.xLabel, data.score.name],
      () => points.map((one) => [one.name, spec.x(one.x), scored(one.y)]),
      spec.name,
    ),
  );
  if (spec.note) holder.append(make("p", { class: "note" }, spec.note));
  keepDrawn(place, (width) => {
    clear(place);
    const height = Math.max(220, Math.min(320, width * 0.6));
    let [low, high] = extent(points.flatMap((one) => [one.y, one.low, one.high]).filter(known), 0.16);
    if (data.score.unit === "%") [low, high] = [Math.max(low, 0), Math.min(high, 100)];
    const marks = ticks(low, high, height / 55),
      yTick = marked(marks);
    const box = {
      left: 14 + 7 * Math.max(...marks.map((mark) => yTick(mark).length)),
      right: width - 16,
      top: 10,
      bottom: height - 36,
    };
    const most = Math.max(...points.flatMap((one) => [one.x, one.xHigh]).filter(known)) * 1.08;
    const X = (x) => box.left + (x / most) * (box.right - box.left);
    const Y = (y) =>
      box.bottom - ((Math.max(low, Math.min(high, y)) - low) / (high - low)) * (box.bottom - box.top);
    const svg = draw("svg", {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label":
        `${spec.name}. ` +
        points.map((one) => `${one.name}: ${scored(one.y)} at ${spec.x(one.x)}.`).join(" "),
    });
    for (const mark of marks)
      svg.append(
        draw("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(mark), y2: Y(mark) }),
        draw("text", { x: box.left - 8, y: Y(mark) + 4, "text-anchor": "end" }, yTick(mark)),
      );
    const xMarks = ticks(0, most, width / 110),
      xTick = spec.tick || marked(xMarks);
    for (const mark of xMarks)
      svg.append(
        draw("line", { class: "axis", x1: X(mark), x2: X(mark), y1: box.bottom, y2: box.bottom + 4 }),
        draw("text", { x: X(mark), y: box.bottom + 17, "text-anchor": "middle" }, xTick(mark)),
      );
    svg.append(
      draw("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
      draw("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle" }, spec.xLabel),
    );
    // The frontier: no other model is both better and smaller, or faster.
    const best = points
      .filter(
        (one) =>
          !points.some(
            (other) =>
              other !== one && other.x <= one.x && other.y >= one.y && (other.x < one.x || other.y > one.y),
          ),
      )
      .sort((a, b) => a.x - b.x);
    if (best.length > 1)
      svg.append(
        draw("path", {
          class: "frontier",
          d: best.map((one, i) => `${i ? "L" : "M"}${X(one.x)} ${Y(one.y)}`).join(""),
        }),
      );
    const whisker = (one, from, to) =>
      draw("line", {
        x1: from[0],
        y1: from[1],
        x2: to[0],
        y2: to[1],
        class: "whisker",
        style: `stroke: ${paint(one)}`,
      });
    for (const one of points) {
      const x = X(one.x),
        y = Y(one.y);
      if (known(one.low)) svg.append(whisker(one, [x, Y(one.low)], [x, Y(one.high)]));
      if (known(one.xLow)) svg.append(whisker(one, [X(one.xLow), y], [X(one.xHigh), y]));
      svg.append(marker(one, x, y));
    }
    place.append(svg);
  });
}

const paint = (one) => (one.teacher ? "var(--teacher)" : colour(one.colour));

function marker(one, x, y) {
  const style = `fill: ${paint(one)}`;
  if (one.teacher) return draw("rect", { x: x - 6, y: y - 6, width: 12, height: 12, style });
  const shapes = [
    () => draw("circle", { cx: x, cy: y, r: 6.5, style }),
    () => draw("path", { d: `M${x} ${y - 8}l7.5 13h-15z`, style }),
    () => draw("path", { d: `M${x} ${y - 8}l8 8l-8 8l-8 -8z`, style }),
  ];
  return shapes[one.colour % shapes.length]();
}
