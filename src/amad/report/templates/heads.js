const ALIKE = 0.95;

// At the last step: which student heads no teacher head prefers, and which do the same as another.
function showHeads(run) {
  const body = clear(document.getElementById("heads-body"));
  const { pairs } = run.alignment;
  if (!pairs.length) {
    body.append(make("p", { class: "note" }, uncompared(run)));
    return;
  }
  const rows = pairs.flatMap(headsOf);
  // A layer with two teachers has each of its heads twice.
  const layers = pairs.filter((pair, i) => pairs.findIndex((other) => other.student === pair.student) === i);
  const heads = layers.flatMap((pair) => headsOf(pair));
  const idle = heads.filter((head) =>
    rows.every(
      (row) =>
        row.pair.student !== head.pair.student || row.head !== head.head || row.preferredBy.length === 0,
    ),
  );
  const doubles = layers.flatMap((pair) =>
    (pair.alike || []).flatMap((line, a) =>
      line.flatMap((cosine, b) =>
        a < b && cosine >= ALIKE ? [`S${a} and S${b} in ${pair.student} (${cosine.toFixed(3)})`] : [],
      ),
    ),
  );
  const list = (found, most = 8) =>
    found.slice(0, most).join("; ") + (found.length > most ? `; and ${found.length - most} more` : "");
  body.append(
    make(
      "p",
      {},
      idle.length
        ? `${idle.length} of ${heads.length} student heads are no teacher head's first choice: ${list(idle.map((row) => `S${row.head} in ${row.pair.student}`))}.`
        : `Every one of the ${heads.length} student heads is the first choice of some teacher head.`,
    ),
    make(
      "p",
      {},
      !pairs.some((pair) => pair.alike)
        ? "How alike the student's heads are was not recorded by the version of amad that made this run."
        : doubles.length
          ? `${doubles.length} ${doubles.length === 1 ? "pair" : "pairs"} of student heads in one layer look at nearly the same (cosine of their maps ${ALIKE} or more): ${list(doubles)}.`
          : `No two student heads of a layer look at nearly the same (cosine of their maps ${ALIKE} or more).`,
    ),
  );
  const poor = pairs
    .flatMap((pair) => (pair.coverage_by_head || []).map((nats, i) => ({ pair, nats, i })))
    .sort((a, b) => b.nats - a.nats)
    .slice(0, 3);
  if (poor.length)
    body.append(
      make(
        "p",
        {},
        "Teacher heads farthest from their nearest student head: " +
          poor.map(({ pair, nats, i }) => `T${i} in ${pair.teacher} (${nats.toFixed(2)} nats)`).join(", ") +
          ".",
      ),
    );
  const columns = ["student head", "taught", "first choice of", "most like", "cosine"];
  const widest = Math.max(...rows.map((row) => row.taught / row.even));
  const details = make("details", { open: rows.length <= 16 }, make("summary", {}, "Every student head"));
  details.append(
    table(
      columns,
      rows.map((row) => [
        `S${row.head} in ${pairName(row.pair, pairs)}`,
        make(
          "span",
          { title: `an even share is ${percent(row.even)}` },
          percent(row.taught),
          " ",
          make("span", {
            class: "bar",
            "aria-hidden": "true",
            style: `width: ${((4 * row.taught) / row.even / widest).toFixed(2)}rem`,
          }),
        ),
        row.preferredBy.length
          ? row.preferredBy.map((i) => `T${i}`).join(" ")
          : make("span", { class: "flag" }, "nobody"),
        row.double === null ? "–" : `S${row.double}`,
        row.cosine === null
          ? "–"
          : row.cosine >= ALIKE
            ? make("span", { class: "flag" }, row.cosine.toFixed(3))
            : row.cosine.toFixed(3),
      ]),
      "Student heads",
    ),
  );
  body.append(
    details,
    make(
      "p",
      { class: "note" },
      "Taught: the share of all weights of the layer that falls to the head. First choice of: the teacher heads whose largest weight is this head's. All at the last recorded step.",
    ),
  );
}

function headsOf(pair) {
  const rows = pair.weights.findLast(Boolean);
  const n = rows[0].length;
  // Teacher heads that teach nobody have no weight to share out.
  const all = rows.flat().reduce((sum, weight) => sum + weight, 0) || 1;
  return rows[0].map((_, j) => {
    const others = pair.alike
      ? pair.alike[j].map((cosine, l) => ({ cosine, l })).filter(({ l }) => l !== j)
      : [];
    const nearest = others.length ? others.reduce((a, b) => (b.cosine > a.cosine ? b : a)) : null;
    return {
      pair,
      head: j,
      even: 1 / n,
      taught: rows.reduce((sum, row) => sum + row[j], 0) / all,
      preferredBy: rows.flatMap((row, i) => (row[j] > 0 && row[j] === Math.max(...row) ? [i] : [])),
      double: nearest && nearest.l,
      cosine: nearest && nearest.cosine,
    };
  });
}
