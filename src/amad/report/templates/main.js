const LOSSES = {
  loss: "Whole loss",
  loss_task: "Ground truth",
  loss_logits: "Teacher's predictions",
  loss_attention: "Teacher's attention",
};
const FIGURES = {
  entropy: ["Entropy of the weights", "1: all heads alike; 0: one takes all", 1],
  largest: ["Largest weight", "mean over teacher heads", null],
  coverage: ["Distance to the nearest head", "nats, mean over teacher heads", null],
  collapse: ["Likeness of student heads", "mean cosine; 1: all the same", 1],
};
const holder = (name) => document.querySelector(`[data-chart="${name}"]`);

const teacherName = () => (data.teacher.sample ? `teacher (${data.teacher.sample} examples)` : "teacher");

function showScores() {
  const series = data.groups.map((group, index) => ({
    name:
      group.name +
      (group.is_teacher
        ? " while it was trained"
        : group.n_runs > 1
          ? ` (${group.n_runs} runs, 95 % interval)`
          : ""),
    points: group.curve.map(([x, mean]) => [x, mean]),
    band: group.curve.map(([x, , low, high]) => [x, low, high]),
    // More than two methods with all their runs would be a thicket.
    thin: group.n_runs > 1 && data.groups.length < 3 ? group.runs : [],
    colour: index,
    dash: index,
  }));
  const teacher =
    data.teacher && known(data.teacher.score)
      ? [{ name: teacherName(), points: [[0, data.teacher.score]], reference: true }]
      : [];
  if (!series.some((one) => one.points.length)) {
    holder("score").append(
      make(
        "p",
        { class: "note" },
        "No run was scored while it trained. Set training.eval_strategy=steps and training.eval_steps in the recipe to see when a score was reached.",
      ),
    );
    return;
  }
  lineChart(holder("score"), {
    name: `${data.score.name} against examples seen`,
    title: data.score.name + (data.score.unit ? `, ${data.score.unit}` : ""),
    xLabel: "training examples seen",
    xUnit: "examples",
    y: scored,
    zeroX: true,
    ...(data.score.unit === "%" ? { bottom: 0, top: 100 } : {}),
    series: [...series, ...teacher],
  });
}

function showFrontier() {
  const points = data.groups.map((group, index) => ({
    name: group.name,
    y: group.score && group.score.mean,
    low: group.score && group.score.low,
    high: group.score && group.score.high,
    colour: index,
    teacher: group.is_teacher,
    parameters: group.parameters,
    latency: group.latency_seconds,
  }));
  if (data.teacher && !data.groups.some((group) => group.is_teacher))
    points.push({
      name: teacherName(),
      y: data.teacher.score,
      low: data.teacher.low,
      high: data.teacher.high,
      teacher: true,
      parameters: data.teacher.parameters,
      latency: data.teacher.latency_seconds,
    });
  scatter(holder("size"), {
    title: `${data.score.name} and size`,
    name: "Score against parameters",
    xLabel: "parameters",
    x: count,
    points: points.map((one) => ({ ...one, x: one.parameters })),
    none: "Neither score nor size was recorded.",
  });
  const ms = (seconds) => `${trim(1000 * seconds)} ms`;
  scatter(holder("latency"), {
    title: `${data.score.name} and latency`,
    name: "Score against latency",
    xLabel: "latency of one example, ms",
    x: ms,
    tick: (at) => trim(1000 * at),
    points: points.map((one) => ({
      ...one,
      x: one.latency && one.latency.median,
      xLow: one.latency && one.latency.low,
      xHigh: one.latency && one.latency.high,
    })),
    note:
      "Median and quartiles, decoded greedily; compare only what was measured on one machine." +
      (data.teacher && data.teacher.latency_seconds && data.runs.length > 1
        ? " Each was measured in turns with the teacher, and is given as if that had always taken what it took in its middle run."
        : ""),
    none: data.hints.latency,
  });
}

function showLosses(run) {
  const place = clear(holder("losses"));
  const { steps, values } = run.losses;
  if (!steps.length) {
    place.append(make("p", { class: "note" }, "No step of this run was logged."));
    return;
  }
  const order = [...new Set([...Object.keys(LOSSES), ...Object.keys(values)])];
  const terms = order.filter((name) => name.startsWith("loss") && name in values);
  // A run with one term shows one curve: the whole is that term.
  for (const name of terms.length === 2 ? ["loss"] : terms) {
    lineChart(place.appendChild(make("div", { class: "chart" })), {
      name: LOSSES[name] || name,
      title: LOSSES[name] || name.replace("loss_", ""),
      xLabel: "step",
      xUnit: "steps",
      y: trim,
      zero: true,
      height: 190,
      series: [
        {
          name: LOSSES[name] || name,
          points: steps.map((step, i) => [step, values[name][i]]),
          colour: terms.indexOf(name),
          dash: 0,
        },
      ],
    });
  }
  const shares = terms.map((name) => name.replace("loss", "share")).filter((name) => name in values);
  if (shares.length > 1)
    lineChart(place.appendChild(make("div", { class: "chart" })), {
      name: "Share of each term in the loss",
      title: "Share of the whole",
      xLabel: "step",
      xUnit: "steps",
      y: percent,
      tick: percent,
      zero: true,
      top: 1,
      height: 190,
      series: shares.map((name) => ({
        name: LOSSES[name.replace("share", "loss")] || name,
        points: steps.map((step, i) => [step, values[name][i]]),
        colour: terms.indexOf(name.replace("share", "loss")),
        dash: terms.indexOf(name.replace("share", "loss")),
      })),
    });
}

function showAlignment(run) {
  const place = clear(holder("alignment"));
  place.parentNode.querySelectorAll(":scope > .legend").forEach((old) => old.remove());
  const { steps, pairs } = run.alignment;
  document.getElementById("alignment-h").hidden = !pairs.length;
  if (!pairs.length) return;
  const stacks = [...new Set(pairs.map((pair) => pair.stack))];
  const looks = pairs.map((pair) => ({
    name: pairName(pair, pairs),
    colour: stacks.indexOf(pair.stack),
    dash: pairs.filter((other) => other.stack === pair.stack).indexOf(pair),
  }));
  place.before(legend(looks.length <= 12 ? looks : stacks.map((name, index) => ({ name, colour: index }))));
  for (const [name, [title, meaning, top]] of Object.entries(FIGURES)) {
    lineChart(place.appendChild(make("div", { class: "chart" })), {
      name: title,
      title,
      meaning,
      xLabel: "step",
      xUnit: "steps",
      y: (value) => value.toFixed(3),
      zero: name === "coverage",
      top,
      height: 190,
      noLegend: true,
      series: looks.map((look, at) => ({
        ...look,
        points: steps.map((step, i) => [step, pairs[at][name][i]]),
      })),
    });
  }
}

function showRun(index) {
  const run = data.runs[index];
  showLosses(run);
  showFlows(run);
  showAlignment(run);
  showHeads(run);
  showAttention(run);
  showAnswers(run);
}

showScores();
showFrontier();
const chooser = document.getElementById("run");
data.runs.forEach((run, index) =>
  chooser.append(make("option", { value: index }, `${run.name} · ${data.groups[run.group].name}`)),
);
// The page begins with the run that says most of teaching.
const first = Math.max(
  0,
  data.runs.findIndex((run) => run.alignment.pairs.length),
);
chooser.value = first;
chooser.addEventListener("change", () => showRun(Number(chooser.value)));
showRun(first);
