"""Bad configurations, for `experiment.train`."""

import math

from tests.test_experiment import small

BUCKETS = {"name": "Buckets", "expected_batch_size": 9, "num_buckets": 3}


def without(section, name=None):
  config = small()
  del (config[section] if name else config)[name or section]
  return config


def model(name, **options):
  return small(model={"name": name, "seed": 0, "num_classes": 10, **options})


def poisson(**options):
  return small(
    sampler={"name": "Poisson", "expected_batch_size": 64, **options}
  )


def rule(name, **options):
  return small(rule={"name": name, **options})


def optimizer(name="sgd", **options):
  return small(
    optimizer={
      "name": name,
      "learning_rate": 0.1,
      "schedule": "constant",
      "warmup_steps": 0,
      **options,
    }
  )


def buckets(**changes):
  return small(sampler=BUCKETS, **changes)


ROWS = {
  # Sections and names.
  "no config": ([], "config lacks data, model"),
  "no privacy": (without("privacy"), "config lacks privacy"),
  "no name of a rule": (without("rule", "name"), "config.rule lacks name"),
  "no delta": (without("privacy", "delta"), "config.privacy lacks delta"),
  "an unknown section": (
    {**small(), "extra": {}},
    "config has no 'extra'; there is data",
  ),
  "a misspelt section": (
    {**small(), "trainning": {}},
    "did you mean 'training'",
  ),
  "a section that is none": (
    {**small(), "rule": None},
    "config.rule must be values by name, got None",
  ),
  "a misspelt value": (
    small(training__num_step=3),
    "config.training has no 'num_step'; did you mean 'num_steps'",
  ),
  "a misspelt knob": (
    small(performance__microbatch=3),
    "config.performance .* did you mean 'microbatch_size'",
  ),
  # Rules.
  "an unknown rule": (
    small(rule__name="flatt"),
    r"config.rule.name must be one of \[.*'flat'.* got 'flatt'",
  ),
  "a rule that is a number": (small(rule__name=3), "must be a string, got 3"),
  "an unknown argument of a rule": (
    small(rule__norm=1.0),
    r"config.rule \(flat\) has no 'norm'; there is l2_clip_norm",
  ),
  "a rule without its clip norm": (rule("flat"), "lacks l2_clip_norm"),
  "a clip norm of zero": (
    small(rule__l2_clip_norm=0.0),
    "l2_clip_norm must be > 0",
  ),
  "a clip norm in words": (
    small(rule__l2_clip_norm="one"),
    "l2_clip_norm must be a finite number, got 'one'",
  ),
  "an infinite clip norm": (
    small(rule__l2_clip_norm=math.inf),
    "must be a finite number, got inf",
  ),
  "a clip norm that no square holds": (
    small(rule__l2_clip_norm=1e-30),
    "between 1e-12 and 1e18.*Scale the loss",
  ),
  "an unknown noise allocation": (
    rule("per_layer", l2_clip_norm=1.0, noise_allocation="fair"),
    "must be 'global' or 'equal' or 'weighted', got 'fair'",
  ),
  "a quantile above one": (
    rule("adaptive_quantile", initial_clip_norm=1.0, quantile=1.5),
    "quantile must be",
  ),
  "no groups": (
    rule("groupwise", l2_clip_norms={}),
    "l2_clip_norms is empty. Give at least one",
  ),
  "a group in words": (
    rule("groupwise", l2_clip_norms={".*": "one"}),
    "l2_clip_norms must be values by name, each a finite number",
  ),
  "a pattern that is none": (
    rule("groupwise", l2_clip_norms={"(": 1.0}),
    "is no regular expression",
  ),
  "no clipping, and noise": (rule("no_clipping"), "noise"),
  "a schedule that begins late": (
    small(rule__schedule=[[5, 1.0]]),
    "in rising order from step 0",
  ),
  "a schedule in words": (
    small(rule__schedule="fast"),
    "in rising order from step 0.*got 'fast'",
  ),
  # Samplers.
  "an unknown sampler": (
    small(sampler={"name": "Poison"}),
    "config.sampler.name must be one of .* got 'Poison'",
  ),
  "an unknown argument of a sampler": (
    small(sampler={"name": "Poisson", "batch_size": 9}),
    r"config.sampler \(Poisson\) has no 'batch_size'; did you mean",
  ),
  "no batch size": (small(sampler={"name": "Poisson"}), "expected_batch_size"),
  "a batch larger than the data": (
    poisson(expected_batch_size=2000),
    "expected_batch_size=2000 is larger than num_examples=1437",
  ),
  "a batch of zero": (poisson(expected_batch_size=0), "must be > 0"),
  "a batch that is not a number": (
    poisson(expected_batch_size=math.nan),
    "a finite number, got nan",
  ),
  "a cap below the batch": (
    poisson(max_batch_size=63),
    "is smaller than expected_batch_size",
  ),
  "a cap that is no word we know": (
    poisson(max_batch_size="all"),
    "must be an integer, 'auto' or None, got 'all'",
  ),
  "half a row a batch": (
    small(sampler={"name": "FixedSize", "batch_size": 10.5}),
    "batch_size must be an integer, got 10.5",
  ),
  "no buckets": (
    small(sampler={**BUCKETS, "num_buckets": 0}),
    "num_buckets must be >= 1",
  ),
  "views of a bucket": (
    buckets(data__num_views=2),
    "num_views is for single examples",
  ),
  # Privacy.
  "noise and a target": (
    small(privacy__target_epsilon=3.0),
    "one of noise_multiplier and target_epsilon.*got 20.0 and 3.0",
  ),
  "neither noise nor a target": (
    small(privacy__noise_multiplier=None),
    "got None and None",
  ),
  "negative noise": (
    small(privacy__noise_multiplier=-1.0),
    "noise_multiplier must be >= 0 and finite, got noise_multiplier=-1.0",
  ),
  "noise that is not a number": (
    small(privacy__noise_multiplier=math.nan),
    "noise_multiplier must be a finite number or None, got nan",
  ),
  "noise in words": (
    small(privacy__noise_multiplier="much"),
    "must be a finite number or None, got 'much'",
  ),
  "a target that cannot be reached": (
    small(privacy__noise_multiplier=None, privacy__target_epsilon=0.0),
    "target_epsilon must be > 0",
  ),
  "a delta of one": (small(privacy__delta=1.0), "delta must be"),
  "a delta below zero": (small(privacy__delta=-1e-5), "delta must be"),
  "a delta in words": (
    small(privacy__delta="small"),
    "delta must be a finite number, got 'small'",
  ),
  "no delta in its place": (small(privacy__delta=None), "got None"),
  "a budget of zero": (small(privacy__max_epsilon=0.0), "max_epsilon must be"),
  "a budget below one step": (
    small(privacy__max_epsilon=0.001),
    "Not one step fits.*Use more noise",
  ),
  "a budget below the target": (
    small(
      privacy__noise_multiplier=None,
      privacy__target_epsilon=3.0,
      privacy__max_epsilon=1.0,
    ),
    "target_epsilon=3.0 is larger than .*max_epsilon=1.0",
  ),
  "an unknown relation": (
    small(privacy__neighboring_relation="REPLACE"),
    "neighboring_relation must be None or one of .* got 'REPLACE'",
  ),
  "a relation that the sampler cannot account": (
    small(
      sampler={"name": "FixedSize", "batch_size": 10},
      privacy__neighboring_relation="ADD_OR_REMOVE_ONE",
    ),
    "FixedSize has no accountant",
  ),
  "noise levels in disorder": (
    small(privacy__noise_schedule=[[0, 1.0], [9, 2.0], [4, 3.0]]),
    "in rising order from step 0",
  ),
  # Optimizers.
  "an unknown optimizer": (
    small(optimizer__name="sdg"),
    r"config.optimizer.name must be one of \['sgd'.* got 'sdg'",
  ),
  "an unknown option of an optimizer": (
    small(optimizer__beta=1.0),
    r"config.optimizer \(sgd\) has no 'beta'",
  ),
  "an unknown schedule": (
    small(optimizer__schedule="linear"),
    "must be 'constant' or 'cosine', got 'linear'",
  ),
  "a learning rate of zero": (
    optimizer(learning_rate=0.0),
    "learning_rate must be > 0",
  ),
  "a learning rate that is not a number": (
    optimizer(learning_rate=math.nan),
    "must be a finite number, got nan",
  ),
  "a learning rate in words": (
    optimizer(learning_rate="high"),
    "must be a finite number, got 'high'",
  ),
  "momentum of one": (
    optimizer(momentum=1.0),
    r"momentum must be in \[0, 1\), got 1.0",
  ),
  "momentum in words": (optimizer(momentum="0.9"), "got '0.9'"),
  "a second moment that never forgets": (
    optimizer("adam", b2=1.0),
    r"b2 must be in \[0, 1\)",
  ),
  "Nesterov in words": (
    optimizer(nesterov="yes"),
    "nesterov must be True or False, got 'yes'",
  ),
  "warm-up beyond the end": (
    optimizer(warmup_steps=20),
    "warmup_steps must be >= 0 and less than .*num_steps=20",
  ),
  "warm-up of half a step": (optimizer(warmup_steps=0.5), "an integer"),
  # Training.
  "no steps": (small(training__num_steps=0), "num_steps must be >= 1"),
  "half a step": (small(training__num_steps=1.5), "must be an integer"),
  "more steps than are counted": (
    small(training__num_steps=2**31),
    r"num_steps must be < 2\*\*31",
  ),
  "a seed in words": (
    small(training__seed="luck"),
    "training.seed must be an integer or None, got 'luck'",
  ),
  "a negative seed": (small(training__seed=-1), "seed must be >= 0"),
  "an average that never moves": (
    small(training__ema_decay=1.0),
    r"must be in \[0, 1\)",
  ),
  "an average in words": (small(training__ema_decay="slow"), "got 'slow'"),
  "evaluations that never come": (
    small(training__eval_every=0),
    "eval_every must be >= 1",
  ),
  "no checkpoints kept": (
    small(training__keep_checkpoints=0),
    "keep_checkpoints must be >= 1",
  ),
  "diagnostics in words": (
    small(training__diagnostics="no"),
    "diagnostics must be True or False, got 'no'",
  ),
  "an unknown field of inner momentum": (
    small(training__inner_momentum={"iterates": 2}),
    "config.training.inner_momentum has no 'iterates'; did you mean",
  ),
  "inner momentum that is a number": (
    small(training__inner_momentum=3),
    "must be values by name or None, got 3",
  ),
  "inner momentum over nothing": (
    small(training__inner_momentum={"num_iterates": 0}),
    "num_iterates must be >= 1",
  ),
  "a public batch of nothing": (
    small(training__public_every=3),
    "public_every needs config.data.public_examples",
  ),
  "a public batch that never comes": (
    small(
      data__public_examples=9,
      training__public_every=0,
      rule={"name": "preconditioned", "l2_clip_norm": 1.0},
    ),
    "every must be >= 1",
  ),
  "a rule that needs a public batch": (
    rule("preconditioned", l2_clip_norm=1.0),
    "public",
  ),
  # Performance.
  "an unknown method": (
    small(performance__method="magic"),
    "must be 'auto' or 'factored' or 'stacked', got 'magic'",
  ),
  "a microbatch of zero": (
    small(performance__microbatch_size=0),
    "microbatch_size must be",
  ),
  "a microbatch in words": (
    small(performance__microbatch_size="big"),
    "must be an integer, 'auto' or None, got 'big'",
  ),
  "no steps in a call": (
    small(performance__steps_per_call=0),
    "steps_per_call must be >= 1",
  ),
  "data on the device in words": (
    small(performance__data_on_device="yes"),
    "got 'yes'",
  ),
  # Models.
  "an unknown model": (
    small(model__name="mlpp"),
    "model must be one of",
  ),
  "an unknown option of a model": (
    model("mlp", width=3),
    "has no option 'width'",
  ),
  "a layer of no width": (model("mlp", hidden=[32, 0]), "hidden must be > 0"),
  "layers in words": (model("mlp", hidden="deep"), "a list, each an integer"),
  "an unknown activation": (model("mlp", activation="step"), "activation"),
  "an unknown dtype": (model("mlp", dtype="float7"), "got 'float7'"),
  "a dtype of integers": (model("mlp", dtype="int32"), "floating-point"),
  "no classes": (small(model__num_classes=0), "num_classes"),
  "fewer classes than labels": (
    small(model__num_classes=9),
    "go from 0 to 9, but config.model.num_classes=9 takes 0 to 8",
  ),
  "a negative seed of a model": (small(model__seed=-1), "seed must be >= 0"),
  "features without end": (
    small(model__num_features=10**12),
    "num_features must be > 0 and at most",
  ),
  "a model beyond any memory": (
    model("mlp", hidden=[10**6, 10**6]),
    "GB of parameters. Make it smaller",
  ),
  "a bandwidth of zero": (small(model__bandwidth=0.0), "bandwidth must be > 0"),
  "a model of texts for images": (model("lstm"), "lstm"),
  "patches that do not fit": (model("vit_tiny", patch_size=3), "patch_size"),
  "groups that do not divide": (
    model("resnet18", num_groups=7),
    "num_groups",
  ),
  "BatchNorm over single examples": (
    model("resnet18", norm="batch"),
    "norm='group'",
  ),
  # Data.
  "an unknown data set": (
    small(data__name="digit", data__data_dir="."),
    "digit.*needs no download",
  ),
  "a data set that is a number": (small(data__name=3), "must be a string"),
  "a data set outside its folder": (
    small(data__name="../digits"),
    "must be as TFDS writes it",
  ),
  "a data folder that is a number": (
    small(data__data_dir=3),
    "data_dir must be a string or None",
  ),
  "more rows than there are": (
    small(data__num_examples=1437, data__public_examples=1),
    "num_examples=1437 and public_examples=1 of 1437 rows",
  ),
  "no rows": (small(data__num_examples=0), "num_examples=0"),
  "fewer public rows than none": (
    small(data__public_examples=-1),
    "public_examples=-1",
  ),
  "half a row": (small(data__num_examples=9.5), "an integer or None"),
  "no views": (small(data__num_views=0), "num_views must be >= 1"),
}
