"""Bad command lines: script, flags, and the exit status that they end in.

``{folder}`` is an empty folder; ``{files}`` holds the files below.
"""

DIGITS = "--config=configs/digits.py"
PSASC = "--config=configs/studies/psasc.py:digits"
SURVEY = "--config=configs/studies/rr_digits.py:log"
RUN = "--workdir={folder}/run"
FULL = ("--sampler=FullBatch", "--num_examples=1000", "--delta=1e-5")
PLAN = (*FULL, "--num_steps=10")

FILES = {
  "no_function.py": "x = 1\n",
  "no_python.py": "def get_config(:\n",
  "no_config.py": "def get_config():\n  return 3\n",
  "notes.txt": "not a folder\n",
}
REFUSED, NO_FLAGS = 2, 1

ROWS = {
  # The config.
  "no config": ("train.py", [RUN], NO_FLAGS, "--config must have a value"),
  "no workdir": ("train.py", [DIGITS], NO_FLAGS, "--workdir must have a value"),
  "a config that is not there": (
    "train.py",
    ["--config=configs/digit.py", RUN],
    REFUSED,
    "there is no file 'configs/digit.py'. Pass the path",
  ),
  "a folder for a config": (
    "train.py",
    ["--config=configs", RUN],
    REFUSED,
    "there is no file 'configs'",
  ),
  "a config without its function": (
    "train.py",
    ["--config={files}/no_function.py", RUN],
    REFUSED,
    r"defines no get_config\(\)",
  ),
  "a config that is not Python": (
    "account.py",
    ["--config={files}/no_python.py"],
    REFUSED,
    "is not Python: .*line 1",
  ),
  "a config that is a number": (
    "evaluate.py",
    ["--config={files}/no_config.py", RUN],
    REFUSED,
    "must return an ml_collections.ConfigDict, got int",
  ),
  "an argument of a config that takes none": (
    "train.py",
    [f"{DIGITS}:large", RUN],
    REFUSED,
    "takes no argument. Leave out",
  ),
  "an unknown argument of a config": (
    "study.py",
    [f"{PSASC}s", RUN],
    REFUSED,
    "Give one of digits, mnist, cifar10, got 'digitss'",
  ),
  "an unknown law": (
    "study.py",
    [f"{SURVEY}s", RUN],
    REFUSED,
    "must be one of published, log, normalized",
  ),
  # Overrides.
  "an unknown section": (
    "train.py",
    [DIGITS, RUN, "--config.rules.l2_clip_norm=1"],
    REFUSED,
    "config has no 'rules'; did you mean 'rule'",
  ),
  "an unknown value": (
    "train.py",
    [DIGITS, RUN, "--config.rule.clip_norm=1"],
    REFUSED,
    "config.rule has no 'clip_norm'; did you mean 'l2_clip_norm'",
  ),
  "words for a number": (
    "train.py",
    [DIGITS, RUN, "--config.rule.l2_clip_norm=one"],
    NO_FLAGS,
    "could not convert string to float: 'one'",
  ),
  "half a step": (
    "train.py",
    [DIGITS, RUN, "--config.training.num_steps=1.5"],
    NO_FLAGS,
    "num_steps=1.5",
  ),
  "a number for a section": (
    "train.py",
    [DIGITS, RUN, "--config.training=3"],
    NO_FLAGS,
    "is not a dict",
  ),
  "noise and a target": (
    "train.py",
    [DIGITS, RUN, "--config.privacy.noise_multiplier=1.0"],
    REFUSED,
    "one of noise_multiplier and target_epsilon",
  ),
  "a negative clip norm": (
    "train.py",
    [DIGITS, RUN, "--config.rule.l2_clip_norm=-1"],
    REFUSED,
    "must be > 0 and finite, got l2_clip_norm=-1.0",
  ),
  # Flags.
  "a misspelt flag": (
    "train.py",
    [DIGITS, "--workdr={folder}/run"],
    NO_FLAGS,
    "Did you mean: workdir",
  ),
  "a word too many": (
    "train.py",
    [DIGITS, RUN, "again"],
    REFUSED,
    "Arguments without a flag: again. Write --name=value",
  ),
  "processes without a coordinator": (
    "train.py",
    [DIGITS, RUN, "--num_processes=2", "--process_id=0"],
    REFUSED,
    "need --coordinator=HOST:PORT",
  ),
  "a workdir that is a file": (
    "train.py",
    [
      DIGITS,
      "--workdir={files}/notes.txt",
      "--config.privacy.target_epsilon=None",
      "--config.privacy.noise_multiplier=9.0",
      "--config.model.num_features=100",
    ],
    REFUSED,
    "notes.txt is a file. Choose another workdir",
  ),
  "no run to evaluate": (
    "evaluate.py",
    [DIGITS, RUN, "--config.model.num_features=100"],
    REFUSED,
    "has no released parameters. Finish the run first",
  ),
  "an unknown split": (
    "evaluate.py",
    [DIGITS, RUN, "--split=valid"],
    REFUSED,
    "has the splits 'train' and 'test', got split='valid'",
  ),
  # Accounting.
  "nothing to account": ("account.py", [], REFUSED, "Give --num_examples and"),
  "too little to account": (
    "account.py",
    [*FULL],
    REFUSED,
    "noise_multiplier, num_steps not given",
  ),
  "too much to find": (
    "account.py",
    [*FULL, "--target_epsilon=1"],
    REFUSED,
    "leave exactly one of",
  ),
  "nothing to find": (
    "account.py",
    [*PLAN, "--noise_multiplier=9", "--target_epsilon=1"],
    REFUSED,
    "open are: none",
  ),
  "negative noise": (
    "account.py",
    [*PLAN, "--noise_multiplier=-1"],
    REFUSED,
    "noise_multiplier must be >= 0",
  ),
  "a delta of one": (
    "account.py",
    [*PLAN, "--noise_multiplier=9", "--delta=1"],
    REFUSED,
    "delta must be > 0 and < 1",
  ),
  "no examples": (
    "account.py",
    [*PLAN, "--noise_multiplier=9", "--num_examples=0"],
    REFUSED,
    "num_examples must be >= 1",
  ),
  "no steps": (
    "account.py",
    [*FULL, "--noise_multiplier=9", "--num_steps=0"],
    REFUSED,
    "num_steps must be >= 1",
  ),
  "a batch of a full batch": (
    "account.py",
    [*PLAN, "--noise_multiplier=9", "--batch_size=10"],
    REFUSED,
    "Leave it out, or use another sampler",
  ),
  "half a row a batch": (
    "account.py",
    [*PLAN, "--noise_multiplier=9", "--batch_size=9.5", "--sampler=FixedSize"],
    REFUSED,
    "a whole number of rows",
  ),
  "a cap below the batch": (
    "account.py",
    [
      *PLAN,
      "--noise_multiplier=9",
      "--batch_size=90",
      "--sampler=Poisson",
      "--max_batch_size=80",
    ],
    REFUSED,
    "is smaller than expected_batch_size",
  ),
  "a cap of zero": (
    "account.py",
    [
      *PLAN,
      "--noise_multiplier=9",
      "--batch_size=90",
      "--sampler=Poisson",
      "--max_batch_size=0",
    ],
    REFUSED,
    "max_batch_size must be >= 1",
  ),
  "an unknown sampler": (
    "account.py",
    [*PLAN, "--noise_multiplier=9", "--sampler=Poison"],
    NO_FLAGS,
    "value should be one of <Poisson",
  ),
  "a relation that a sampler cannot account": (
    "account.py",
    [
      *PLAN,
      "--noise_multiplier=9",
      "--batch_size=10",
      "--sampler=FixedSize",
      "--relation=ADD_OR_REMOVE_ONE",
    ],
    REFUSED,
    "FixedSize has no accountant",
  ),
  "a selection of fewer than one": (
    "account.py",
    [*PLAN, "--noise_multiplier=9", "--selection=poisson"]
    + ["--selection_mean=0.5"],
    REFUSED,
    "mean must be >= 1",
  ),
  "what the config says": (
    "account.py",
    [DIGITS, "--num_steps=3", "--delta=1e-3"],
    REFUSED,
    r"The --config says what \['delta', 'num_steps'\] are",
  ),
  "the cost of what is not private": (
    "account.py",
    [DIGITS, "--num_examples=99", "--config.rule.name=none"],
    REFUSED,
    "epsilon is infinite. Name a rule",
  ),
  # Studies and reports.
  "no study": ("study.py", [], REFUSED, "Give --config and --workdir"),
  "a plan of a study without groups": (
    "study.py",
    [PSASC, RUN, "--dry_run"],
    REFUSED,
    "are for surveys",
  ),
  "a config of a run for a study": (
    "study.py",
    [DIGITS, RUN],
    REFUSED,
    "the config of a study has no 'data'",
  ),
  "a study of an unknown rule": (
    "study.py",
    [PSASC, RUN, "--config.base.optimizer.name=sdg"],
    REFUSED,
    "must be one of .* got 'sdg'",
  ),
  "a study with nothing to choose by": (
    "study.py",
    [PSASC, RUN, "--config.num_validation=900"],
    REFUSED,
    "num_validation=900 rows are not left over, but 637",
  ),
  "a survey of no runs": (
    "study.py",
    [SURVEY, RUN, "--config.law.num_runs=0"],
    REFUSED,
    r"num_runs must be in \[1, ",
  ),
  "a survey of other batches": (
    "study.py",
    [SURVEY, RUN, "--config.base.sampler.name=Shuffled"],
    REFUSED,
    "drawn by Poisson sampling",
  ),
  "no survey to report": (
    "report.py",
    [SURVEY, RUN],
    REFUSED,
    "run the survey first",
  ),
  "a config of a run for a report": (
    "report.py",
    [DIGITS, RUN],
    REFUSED,
    "has a `report`",
  ),
}
# As people call them, in a process of its own.
AS_PROCESSES = (
  "a config that is not there",
  "words for a number",
  "a negative clip norm",
  "a batch of a full batch",
)
