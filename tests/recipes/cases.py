"""A short run of each recipe that trains: the contract and the tests of the recipe read it."""

import importlib
from typing import Any, NamedTuple

from recipes.allocations import ALLOCATIONS as LAYER_SPARSITIES
from recipes.dynamic import METHODS as DYNAMIC
from recipes.prune_at_init import METHODS as AT_INIT
from recipes.random_erk import ALLOCATIONS
from recipes.tickets import CONTROLS
from recipes.tickets import METHODS as TICKETS

SHORT = "--seeds 2 --steps 12 --log-every 4 --evaluations 3 --train-examples 256"


class Case(NamedTuple):
    """A short run of a recipe, and what the contract asks of it."""

    recipe: str
    flags: str
    pictures: str = ""
    report: tuple[str, ...] = ()  # texts that the report has
    stops: tuple[dict[str, Any], ...] = ({"when": {}},)  # when Ctrl-C is pressed, see `interrupted`
    again: str = ""  # flags that the interrupted run changes
    arms: tuple[str, ...] = ()  # the only arms that the interrupted run has; () for all
    files: tuple[str, ...] = ()  # beside those of every run

    @property
    def module(self) -> Any:
        return importlib.import_module(f"recipes.{self.recipe}")


AT_STEP_4 = ({"when": {"step": 4}},)
INIT = f"{SHORT} --rounds 3 --per-class 5 --candidates 3"

CASES = {
    case.recipe: case
    for case in (
        Case(
            "gmp",
            f"{SHORT} --every 2",
            "training layers",
            ("| test accuracy |",),
            AT_STEP_4,
        ),
        Case(
            "small_dense",
            f"{SHORT} --batch-size 32 --sparsity 0.5 --width 0.25 --every 3",
            "non_zeros",
            ("| 50 % | 3,338 | 3,327 |", "points: sparse minus small"),
            AT_STEP_4,
        ),
        Case(
            "plasticity",
            "--seeds 2 --steps 8 --log-every 2 --prunes 2 --recover 4 --sparsity 0.5 0.9"
            " --train-examples 256 --batch-size 32 --width 0.25",
            "plasticity",
            ("|  | before | 50 % | 90 % |", "\n| 4 | ", "4 steps later"),
            ({"when": {"step": 0}}, {"call": 3}),
        ),
        Case(
            "dynamic",
            f"{SHORT} --every 3 --sparsity 0.9 --method {' '.join(DYNAMIC)}",
            "training layers churn",
            ("| dense |", *(f"| {arm} |" for arm in DYNAMIC)),
            AT_STEP_4,
            "--method set top_kast",  # beside fewer methods, each trains alike
            ("set", "top_kast"),
        ),
        Case(
            "block_training",
            f"{SHORT} --every 3 --hidden 32 16 --blocks 8x8 --sparsity 0.75",
            "seconds training layers",
            ("| dense |", "| static weights |", "| rigl 8x8 |", "| dense time / time |"),
            AT_STEP_4,
            "--method rigl gmp",
            ("rigl weights", "rigl 8x8", "gmp weights", "gmp 8x8"),
        ),
        Case(
            "nm",
            f"{SHORT} --hidden 32 16 --patterns 2:4"
            " --method one_shot sr_ste stepwise_flow transposable bdwp",
            "patterns",
            ("| dense |", "| sr_ste 2:4 |", "| transposable 2:4 |", "| bdwp 2:4 |"),
            AT_STEP_4,
            "--method sr_ste bdwp",
            ("sr_ste 2:4", "bdwp 2:4"),
        ),
        Case(
            "random_erk",
            f"{SHORT} --sparsity 0.6 --shift --allocation {' '.join(ALLOCATIONS)}",
            "training layers shift",
            ("| dense |", *(f"| {arm} |" for arm in ALLOCATIONS), "| all corruptions |"),
            AT_STEP_4,
            "--allocation erk",
            ("erk",),
        ),
        Case(
            "allocations",
            f"{SHORT} --sparsity 0.5 0.8 --points 10 --calibration 64",
            "weights_left",
            ("| dense |", *(f"| {arm} |" for arm in LAYER_SPARSITIES), "**rd 80 %**"),
            AT_STEP_4,
        ),
        Case(
            "prune_at_init",
            f"{INIT} --sparsity 0.9 --method {' '.join(AT_INIT)}",
            "training layers weights_left",
            ("| dense |", *(f"| {arm} |" for arm in AT_INIT)),
            AT_STEP_4,
            "--method synflow",
            ("synflow",),
        ),
        Case(
            "gates",
            f"{SHORT} --kept 0.3 --every 3 --width 0.25",
            "training layers gates histograms",
            ("| dense |", "| neuron |", "| weight |", "| gmp |"),
            AT_STEP_4,
            "--level neuron",
            ("neuron", "gmp"),
        ),
        Case(
            "connectivity",
            "--seeds 3 --steps 40 --every 2 --evaluations 2 --points 5 --train-examples 512"
            " --test-examples 100 --curve-steps 5 --sparsity 0.5",  # at 95 % it ends at chance
            "matrices paths",
            ("| error barrier |", "3 pairs x 5 points"),
        ),
        Case(
            "landscape",
            "--steps 6 --train-examples 256 --every 2 --evaluations 2 --examples 100 --points 5"
            " --eigenvalues 3 --lanczos-steps 6 --density-probes 2 --trace-probes 3 --log-every 2",
            "alignment around curvature seeds",
            ("| largest eigenvalue |", "| loss barrier, after matching |", "curvature.png"),
            ({"when": {"step": 2}},),
        ),
        Case(
            "stability",
            "--seeds 2 --children 3 --steps 24 --forks 0 12 24 --points 3 --train-examples 512"
            " --test-examples 100",
            "stability",
            ("| 12, sparse |",),
            ({"when": {}}, {"call": 1}),  # after a fork, and within one
        ),
        Case(
            "soup",
            "--seeds 2 --steps 16 --retrain 0.5 --sparsities 0.5 0.9 --train-examples 300"
            " --batch-size 32 --points 3 --width 0.25 --log-every 8",
            "soups barriers paths layers",
            (
                "| 50 % sparse | 90 % sparse |",
                *(f"| {arm} |" for arm in ("soup", "greedy soup", "best child", "ensemble")),
            ),
            ({"when": {"phase": 1}}, {"call": 2}),
        ),
        Case(
            "gmp_soup",
            "--seeds 2 --children 2 --steps 8 --log-every 2 --prunes 2 --begin 0.25 --end 0.75"
            " --sparsity 0.5 --train-examples 256 --batch-size 32 --width 0.25 --vary init",
            "averages",
            ("| soup |", "| alone |", "| dense soup |", "| step 6 to 50 % |"),
            ({"when": {"step": 2}}, {"call": 2}),
        ),
        Case(
            "distill",
            "--seeds 2 --iterations 12 --log-every 4 --steps 8 --real-batch 16 --width 0.25"
            " --images-per-class 2 --network-steps 2",
            "images loss",
            ("| distilled | 20 |", "| all real | 1,437 |"),
            ({"call": 1}, {"call": 4}),  # while it distills, and while networks learn
            files=("distilled.npz",),
        ),
        Case(
            "distilled_pruning",
            "--seeds 2 --steps 8 --log-every 4 --set-steps 6 --iterations 4 --real-batch 8"
            " --images-per-class 2 --train-examples 256 --sparsities 0.5 0.75 --rate 0.5 --rewind 3"
            " --stable-rounds 1 --points 3 --plane 3 --probes 2 --examples 64",
            "curves paths planes diagonals",
            ("| dense |", "| distilled 2 |", "| erk |", "images seen"),
            ({"when": {"phase": 1}}, {"call": 5}),
        ),
        Case(
            "language",
            "--seeds 2 --steps 12 --log-every 4 --evaluations 3 --batch-size 8 --context 16"
            " --characters 20",
            "learning",
            ("| train | 320,023 |", "| test | 16,834 |", "**sample 3**"),
            ({"when": {"step": 4}}, {"call": 1}),
            files=("samples.txt",),
        ),
        Case(
            "one_shot",
            "--seeds 2 --steps 8 --log-every 4 --evaluations 2 --batch-size 8 --context 16"
            " --characters 20 --sparsity 0.5 2:4 --calibration 8 --calibrations 2"
            " --allocation uniform lamp --method magnitude wanda --repair masked_lora"
            " --repair-steps 4",
            "perplexity errors sparsities",
            ("| dense |", "| wanda lamp 50 % |", "**magnitude 2:4**", "| masked_lora |"),
            ({"when": {"method": "wanda"}},),  # recipes.language stops in its training
            files=("samples.txt",),
        ),
        Case(
            "quantize",
            "--seeds 2 --steps 16 --log-every 4 --sparsity 0 0.5 --bits 4 --method ptq lsq codebook"
            " --teacher none dense --pattern 2:4 --every 2 --batch-size 32 --train-examples 256"
            " --width 0.25",
            "pareto",
            ("| ptq 4 bits |", "| lsq 4 bits, taught |"),
            ({"when": {"method": "float32"}}, {"call": 2}),
        ),
        Case(
            "intrinsic",
            "--seeds 2 --steps 12 --log-every 4 --dims 4 32 --batch-size 32 --train-examples 256"
            " --width 0.25",
            "dimensions",
            ("| dense |", "| d = 4 |", "| d = 32 |", "d_int90: above 32", "a seed, 136 bytes"),
            ({"when": {"d": None}}, {"call": 2}),
            files=("compressed.npz",),
        ),
        Case(
            "sharing",
            "--seeds 2 --steps 12 --log-every 4 --evaluations 3 --train-examples 512"
            " --batch-size 32 --compression 4 --width 0.25"
            " --method random_fold gmp snip small_dense",
            "stored",
            ("| random_fold |", "| gmp |", "| snip |", "| small_dense |"),
            AT_STEP_4,
            "--method random_fold",
            ("random_fold 4x",),
        ),
        Case(
            "embeddings",
            "--seeds 2 --steps 12 --log-every 4 --dims 8 4 2 --bits 32 1 --batch-size 32"
            " --train-examples 256 --width 0.25",
            "pareto",
            ("| slicing 32 bits |", "| low_rank 1 bit |", "| pruned 1 bit |"),
            ({"when": {"method": "slicing"}},),
        ),
        Case(
            "select_features",
            "--seeds 2 --steps 12 --log-every 4 --hidden 16 --every 4 --train-examples 256"
            " --batch-size 32",
            "chosen",
            ("| set |", "| dense |", "| variance |", "| random |"),
            ({"when": {"method": "set"}}, {"call": 1}),
        ),
        Case(
            "codesign",
            "--seeds 2 --steps 6 --log-every 3 --population 3 --generations 2 --rounds 2"
            " --widths 4 8 --depth 2 --bits 4 --batch-size 32 --train-examples 256",
            "search pareto",
            ("| first trial |", "| 4 bits"),
            ({"when": {"generation": 0}}, {"call": 4}),
            files=("network.stablehlo",),
        ),
        Case(
            "tickets",
            "--seeds 2 --steps 12 --log-every 3 --evaluations 2 --train-examples 256"
            " --batch-size 32 --phases 3 --sparsity 0.9 --rewind 3 --schedule drops"
            f" --learning-rate 0.01 --method {' '.join((*TICKETS, *CONTROLS))}",
            "tickets layers pq_index dead",
            tuple(f"\n| {arm} | " for arm in (*TICKETS, *CONTROLS, "sap keeps")),
            ({"when": {"step": 24}}, {"call": 1}),
        ),
        Case(
            "layers",
            "--seeds 2 --steps 4 --log-every 2 --blocks 3 --removed 1 2 --width 0.25"
            " --method snip random --when init trained --train-examples 256 --batch-size 32",
            "blocks",
            ("| snip, trained |", "| random |", "| FLOPs | 81 % | 62 % |"),
            ({"when": {"cell": None}}, {"call": 2}),
        ),
        Case(
            "structured",
            "--seeds 2 --steps 16 --retrain 0.5 --rounds 1 --score l1 random --train-examples 300"
            " --batch-size 32 --width 0.125 --log-every 8 --timings 1 --update noise",
            "flops widths",
            (
                *(f"| {arm} |" for arm in ("dense", "dense, as long", "l1 50 %", "random 25 %")),
                "| A/A |",
                "group           size  of each neuron  on",
            ),
            ({"call": 3},),
            "--timings 0",
        ),
        Case(
            "distill_pruned",
            "--seeds 2 --steps 8 --tune 1 --log-every 4 --batch-size 32 --train-examples 256"
            " --model mlp --width 0.125 --loss hinton fitnets relational",
            "arms",
            ("| dense |", "| just cut |", "| cross_entropy |", "| fitnets |", "Dense_2/kernel"),
            ({"call": 3},),  # after the cut, while students train
        ),
        Case(
            "relaxation",  # four stages: 3 + 3 + 3 + 5 steps, in which gates can move
            "--seeds 2 --steps 14 --log-every 3 --evaluations 2 --train-examples 256"
            " --batch-size 32 --width 0.125 --timings 1 --thresholds 0.3 --final-threshold 0.5"
            " --gate-rate 0.5",
            "stages gates widths flops",
            ("| dense |", "| relaxed 50 % |", "| relaxed 25 % |", "| A/A |", "batch 256"),
            ({"when": {"step": 12}},),
        ),
    )
}
