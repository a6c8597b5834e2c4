const pictures = new Map();

function picture(digest) {
  if (!pictures.has(digest)) {
    pictures.set(
      digest,
      new Promise((resolve) => {
        const image = new Image();
        image.onload = () => resolve(image);
        image.src = data.images[digest];
      }),
    );
  }
  return pictures.get(digest);
}

// The image, the darker the less a head looks there: 1 is where it looks most.
function spotlight(canvas, digest, grid, shades) {
  picture(digest).then((image) => {
    const width = 240,
      height = Math.max(1, Math.round((width * image.naturalHeight) / image.naturalWidth));
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = image.naturalWidth > 120;
    context.drawImage(image, 0, 0, width, height);
    const [rows, columns] = grid;
    const veil = new ImageData(columns, rows);
    shades.forEach((shade, i) => {
      veil.data[4 * i + 3] = 190 * (1 - shade ** 0.7);
    });
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = rows;
    small.getContext("2d").putImageData(veil, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, width, height);
  });
}

function mixture(side, weights) {
  const n = side.heads[0].patches.length;
  const sums = Array.from({ length: n }, (_, p) =>
    side.heads.reduce((sum, head, j) => sum + ((weights[j] * head.patches[p]) / 255) * head.largest, 0),
  );
  const largest = Math.max(...sums);
  const words = side.heads[0].words.map((_, w) =>
    side.heads.reduce((sum, head, j) => sum + weights[j] * head.words[w], 0),
  );
  return {
    largest,
    patches: sums.map((one) => (255 * one) / (largest || 1)),
    words,
    share: side.heads.reduce((sum, head, j) => sum + weights[j] * head.share, 0),
  };
}

function lookOf(head, grid, digest, name) {
  const peak = head.patches.reduce((best, one, i) => (one > head.patches[best] ? i : best), 0);
  const where = `${name}: ${percent(head.share)} of the attention on the image, most in row ${Math.floor(peak / grid[1]) + 1}, column ${(peak % grid[1]) + 1} of ${grid[0]} by ${grid[1]}`;
  const canvas = make("canvas", { role: "img", "aria-label": where, title: where, width: 240, height: 240 });
  spotlight(
    canvas,
    digest,
    grid,
    head.patches.map((one) => one / 255),
  );
  return canvas;
}

function wordsOf(words, head) {
  if (!words.length) return null;
  const most = Math.max(...head.words, 1e-9);
  return make(
    "p",
    { class: "words" },
    words.flatMap((word, i) =>
      word
        ? [
            make(
              "span",
              {
                style: `--look: ${((100 * head.words[i]) / most).toFixed(0)}%`,
                title: percent(head.words[i]),
              },
              word,
            ),
            " ",
          ]
        : [],
    ),
  );
}

// One choice of several, as radio buttons: the arrow keys move it.
function choices(name, legendText, labels, start, onChoose) {
  return make(
    "fieldset",
    { class: `choices ${name}` },
    make("legend", {}, legendText),
    labels.map((label, i) => {
      const input = make("input", {
        type: "radio",
        name,
        value: i,
        checked: i === start,
        onchange: () => onChoose(i),
      });
      return make("label", {}, input, label);
    }),
  );
}

function showAttention(run) {
  const body = clear(document.getElementById("attention-body"));
  const seen = run.examples ? run.examples.seen : [];
  if (!seen.length) {
    body.append(
      make(
        "p",
        { class: "note" },
        run.examples
          ? "No pair of layers of this run looks at the patches of an image."
          : data.hints.examples,
      ),
    );
    return;
  }
  const state = { example: 0, pair: 0, head: 0 };
  const sites = seen[0].attention.map((pair) => pair.student.site);
  // The last pair, of the decoder where there is one, is where an answer is looked for.
  state.pair = sites.length - 1;
  const select = make(
    "select",
    { id: "pair" },
    seen[0].attention.map((pair, i) =>
      make(
        "option",
        { value: i, selected: i === state.pair },
        `${pair.student.site} from ${pair.teacher.site}`,
      ),
    ),
  );
  const asked = make("div", {});
  const view = make("div", {});
  select.addEventListener("change", () => {
    state.pair = Number(select.value);
    state.head = 0;
    show();
  });
  body.append(
    make(
      "p",
      { class: "explains" },
      "Bright is where a head looks; each head is shown beside its own brightest patch, so shades do not compare between heads. Averaged over the words that ask (in a decoder over the words of the right answer). Words are underlaid likewise.",
    ),
    choices(
      "example",
      "Example",
      seen.map((one, i) =>
        make("img", { src: data.images[one.image], alt: `Example ${i + 1}: ${one.text}`, title: one.text }),
      ),
      0,
      (i) => {
        state.example = i;
        show();
      },
    ),
    asked,
    make("p", { class: "chooser layers" }, make("label", { for: "pair" }, "Layers"), select),
    view,
  );

  function show() {
    const example = seen[state.example],
      pair = example.attention[state.pair];
    const { teacher, student, words, cosines } = pair;
    const taught = run.alignment.pairs.find((other) => other.student === student.site && other.teacher === teacher.site);
    clear(asked).append(said(example));
    clear(view).append(
      choices(
        "teacher-head",
        `Heads of the teacher, ${teacher.site}: choose one`,
        teacher.heads.map((head, i) => [
          lookOf(head, teacher.grid, example.image, `T${i}`),
          make("span", {}, `T${i}`),
        ]),
        state.head,
        (i) => {
          state.head = i;
          students();
        },
      ),
    );
    const own = view.appendChild(make("div", {}));
    students();

    function students() {
      const now = taught && taught.weights.findLast(Boolean)[state.head].map((one) => one / 1000);
      const teaches = now && now.some((one) => one > 0);
      const cards = student.heads.map((head, j) =>
        make(
          "figure",
          { class: "look" },
          lookOf(head, student.grid, example.image, `S${j}`),
          wordsOf(words, head),
          make(
            "figcaption",
            {},
            make("strong", {}, `S${j}`),
            teaches ? ` learns ${percent(now[j])}` : "",
            make("br"),
            `cosine ${cosines[state.head][j].toFixed(2)} here, ${percent(head.share)} on the image`,
          ),
        ),
      );
      const chosen = teacher.heads[state.head];
      clear(own).append(
        make(
          "div",
          { class: "looks" },
          make(
            "figure",
            { class: "look teacher" },
            lookOf(chosen, teacher.grid, example.image, `T${state.head}`),
            wordsOf(words, chosen),
            make(
              "figcaption",
              {},
              make("strong", {}, `T${state.head}`),
              " of the teacher",
              make("br"),
              `${percent(chosen.share)} on the image`,
              now && !teaches ? [make("br"), "teaches nobody"] : "",
            ),
          ),
          cards,
          teaches && student.heads.length > 1
            ? (() => {
                const mixed = mixture(student, now);
                return make(
                  "figure",
                  { class: "look" },
                  lookOf(mixed, student.grid, example.image, "mixture"),
                  wordsOf(words, mixed),
                  make(
                    "figcaption",
                    {},
                    make("strong", {}, "Mixture"),
                    " of the student's heads,",
                    make("br"),
                    `which is held against T${state.head}`,
                  ),
                );
              })()
            : null,
        ),
      );
    }
  }
  show();
}

function said(example) {
  const mark = (score) =>
    known(score)
      ? make(
          "span",
          { class: score >= 0.5 ? "good" : "bad" },
          score >= 0.5 ? " ✓" : " ✗",
          score > 0 && score < 1 ? ` ${trim(score)}` : "",
        )
      : null;
  const lines = [
    ["right", example.expected, null],
    ["teacher", example.teacher, example.teacher_score],
    ["student", example.student, example.student_score],
  ];
  return make(
    "div",
    { class: "said" },
    make("p", { class: "asked" }, example.text || "(no text)"),
    make(
      "dl",
      {},
      lines.flatMap(([term, text, score]) => [
        make("dt", {}, term),
        make("dd", {}, text || "(nothing)", mark(score)),
      ]),
    ),
  );
}
