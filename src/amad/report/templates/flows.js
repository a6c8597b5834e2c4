// Why there is nothing to show of who teaches whom.
function uncompared(run) {
  if (run.compares_attention && !run.ended)
    return "This run has recorded no weights between heads yet.";
  return run.compares_attention
    ? "This run compared attention and recorded no weights between heads: its method has none, or log_alignment was off."
    : "No teacher's attention was compared in this run.";
}

// One diagram per pair of layers, all at the step of the one slider.
function showFlows(run) {
  const grid = clear(document.getElementById("flow-grid"));
  const holder = clear(document.getElementById("flow-slider"));
  const note = clear(document.getElementById("flow-legend"));
  const { steps, pairs } = run.alignment;
  if (!pairs.length) {
    grid.append(make("p", { class: "note" }, uncompared(run)));
    return;
  }
  const all = pairs.flatMap((pair) => pair.weights.flatMap((rows) => (rows ? rows.flat() : [])));
  const least = all.reduce((a, b) => Math.min(a, b)),
    most = all.reduce((a, b) => Math.max(a, b));
  // Weights that differ by less than a hundredth are shown alike.
  const strength = (weight) => 0.22 + (0.7 * (weight - least)) / Math.max(most - least, 10);
  note.textContent =
    `The stronger the colour, the larger the weight: from ${percent(least / 1000)} to ${percent(most / 1000)} in this run. ` +
    (known(run.alignment.temperature)
      ? `At this run's temperature of ${run.alignment.temperature} no weight is more than ${trim(Math.exp(1 / run.alignment.temperature))} times another of the same teacher head; an even share means that all student heads are equally like it.`
      : "A teacher head without bands teaches nobody.");
  const diagrams = pairs.map((pair) => diagram(pair, strength));
  grid.append(...diagrams.map((one) => one.figure));
  const output = make("output", { for: "step" });
  const slider = make("input", {
    type: "range",
    id: "step",
    min: 0,
    max: steps.length - 1,
    value: steps.length - 1,
    step: 1,
  });
  const move = (index) => {
    output.textContent = `step ${count(steps[index])} of ${count(steps.at(-1))}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    diagrams.forEach((one) => one.show(index));
  };
  slider.addEventListener("input", () => move(Number(slider.value)));
  holder.append(make("label", { for: "step" }, "Training step"), slider, output);
  move(steps.length - 1);
}

function diagram(pair, strength) {
  const first = pair.weights.find(Boolean);
  const nTeachers = first.length,
    nStudents = first[0].length;
  const slot = nTeachers > 8 ? 15 : 19,
    gap = 4,
    width = 300,
    top = 4;
  const tall = nTeachers * slot,
    height = tall + (nTeachers - 1) * gap + 2 * top;
  const left = nTeachers > 10 ? 40 : 34,
    right = width - (nStudents > 10 ? 40 : 34),
    block = 10;
  const between = (height - 2 * top - tall) / Math.max(nStudents - 1, 1);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img" });
  const bands = first.map((row, i) => row.map((_, j) => svg.appendChild(draw("path", { class: "flow" }))));
  // Hundreds of bands: what one says is written when it is pointed at.
  bands.forEach((row, i) =>
    row.forEach((band, j) =>
      band.addEventListener("pointerenter", () => {
        clear(band).append(draw("title", {}, `T${i} to S${j}: ${percent(rows[i][j] / 1000)}`));
      }),
    ),
  );
  const heads = [
    ...first.map((_, i) => ({ teacher: true, index: i, node: node("t", i, `T${i}`) })),
    ...first[0].map((_, j) => ({ teacher: false, index: j, node: node("s", j, `S${j}`) })),
  ];
  const readout = make("p", { class: "readout", "aria-live": "polite" });
  let rows = first,
    chosen = null;

  function node(side, index, label) {
    const teacher = side === "t";
    const group = svg.appendChild(
      draw(
        "g",
        { class: `head ${side}` },
        draw("rect", { x: teacher ? left - block : right, width: block, rx: 1.5 }),
        draw(
          "text",
          { x: teacher ? left - block - 5 : right + block + 5, "text-anchor": teacher ? "end" : "start" },
          label,
        ),
      ),
    );
    group.addEventListener("click", () =>
      choose(
        heads.findIndex((head) => head.node === group),
        true,
      ),
    );
    return group;
  }

  function choose(index, toggle) {
    chosen = toggle && chosen === index ? null : index;
    svg.classList.toggle("chosen", chosen !== null);
    heads.forEach((head, i) => head.node.classList.toggle("on", i === chosen));
    const head = heads[chosen];
    bands.forEach((row, i) =>
      row.forEach((band, j) =>
        band.classList.toggle("on", Boolean(head) && head.index === (head.teacher ? i : j)),
      ),
    );
    say();
  }

  function say() {
    const head = heads[chosen];
    if (!head) {
      readout.textContent = "";
      return;
    }
    const parts = head.teacher
      ? rows[head.index].map((a, j) => `S${j} ${percent(a / 1000)}`)
      : rows.map((row, i) => `T${i} ${percent(row[head.index] / 1000)}`);
    readout.textContent = head.teacher
      ? `T${head.index} teaches ${parts.join(", ")}`
      : `S${head.index} learns from ${parts.join(", ")}`;
  }

  svg.addEventListener("keydown", (event) => {
    const move = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") choose(null);
    if (!move) return;
    event.preventDefault();
    choose(
      chosen === null ? (move > 0 ? 0 : heads.length - 1) : (chosen + move + heads.length) % heads.length,
    );
  });

  function show(step) {
    if (!pair.weights[step]) return;
    rows = pair.weights[step];
    const totals = rows[0].map((_, j) => rows.reduce((sum, row) => sum + row[j], 0));
    const starts = totals.map(
      (_, j) => top + j * between + (totals.slice(0, j).reduce((sum, one) => sum + one, 0) / 1000) * slot,
    );
    if (nStudents === 1) starts[0] = top + (height - 2 * top - tall) / 2;
    const used = [...starts],
      middle = (left + right) / 2;
    rows.forEach((row, i) => {
      let y = top + i * (slot + gap);
      row.forEach((weight, j) => {
        const thick = (weight / 1000) * slot,
          at = used[j];
        bands[i][j].setAttribute(
          "d",
          `M${left} ${y.toFixed(2)}C${middle} ${y.toFixed(2)} ${middle} ${at.toFixed(2)} ${right} ${at.toFixed(2)}V${(at + thick).toFixed(2)}C${middle} ${(at + thick).toFixed(2)} ${middle} ${(y + thick).toFixed(2)} ${left} ${(y + thick).toFixed(2)}Z`,
        );
        bands[i][j].style.opacity = strength(weight).toFixed(3);
        y += thick;
        used[j] += thick;
      });
    });
    for (const head of heads) {
      const y = head.teacher ? top + head.index * (slot + gap) : starts[head.index];
      const size = head.teacher ? slot : Math.max((totals[head.index] / 1000) * slot, 1);
      const [rect, text] = head.node.children;
      rect.setAttribute("y", y.toFixed(2));
      rect.setAttribute("height", size.toFixed(2));
      text.setAttribute("y", (y + size / 2 + 4).toFixed(2));
    }
    const best = rows.map((row, i) =>
      Math.max(...row) ? `T${i} most to S${row.indexOf(Math.max(...row))}` : `T${i} to nobody`,
    );
    svg.setAttribute(
      "aria-label",
      `${pair.student} from ${pair.teacher}: ${best.join(", ")}. Arrow keys choose a head.`,
    );
    numbers.replaceChildren(numbers.firstChild);
    if (numbers.open) numbers.append(matrix());
    say();
  }

  const matrix = () =>
    table(
      ["", ...rows[0].map((_, j) => `S${j}`)],
      rows.map((row, i) => [`T${i}`, ...row.map((a) => percent(a / 1000))]),
      "Weights",
    );
  const numbers = make("details", {}, make("summary", {}, "As numbers"));
  numbers.addEventListener("toggle", () => {
    if (numbers.open && numbers.children.length === 1) numbers.append(matrix());
  });
  const figure = make(
    "figure",
    {},
    make("figcaption", {}, pair.student, make("span", {}, ` from ${pair.teacher}`)),
    svg,
    make("div", { class: "under" }, numbers, readout),
  );
  return { figure, show };
}
