"""The public names, and which module defines each; nothing is imported here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

PLACES = {
    "core.adapters.attach": "attach detach",
    "core.adapters.control": "enable disable use disabled trainable describe rows prompt tasks watched",
    "core.adapters.merge": "merge unmerge rounding",
    "core.adapters.optimiser": "optimiser",
    "core.adapters.shard": "shard",
    "core.contracts.aggregation": "Aggregation factors",
    "core.contracts.calibration": "Calibration",
    "core.contracts.combination": "Combination Place weighted examined",
    "core.contracts.component": "Component find names axes",
    "core.contracts.costs": "BackwardCosts",
    "core.contracts.decoding": "Decoding",
    "core.contracts.editing": "Editing",
    "core.contracts.examination": "Examination Pair Report Change",
    "core.contracts.example": "Example Examples last_answer",
    "core.contracts.gate": "Gate Subject Probes",
    "core.contracts.form": "Form Params Stats ROW_MASK ROW_STATES ROW_INPUT kaiming orthogonal dropout rank_scale",
    "core.contracts.format": "Format Found Outgoing check_truncation",
    "core.contracts.init": "Init",
    "core.contracts.meta": "Meta MaskMeta Shots",
    "core.contracts.objective": "Objective Rows At Batch Feature Figures ObjectiveState PART TASKS ALSO REFERENCE BASE "
    "STRUCTURED EMBEDDING ADVANTAGE SAMPLED SAMPLED_FIGURES REFERENCE_TOKENS OLD_TOKENS Rollouts Scored by_part",
    "core.contracts.penalty": "Penalty PenaltyState PenaltyStep param_copies=copies param_zeros=zeros",
    "core.contracts.ranks": "Ranks Budget levelled",
    "core.contracts.rewrite": "Rewrite Voices Voice Verdict Made rewrite_request=asked answer_of question_of "
    "with_answer=answered",
    "core.contracts.router": "Routed RoutedBatch Route ROUTE ROUTE_TASKS ROUTE_QUERY task_names=names_of",
    "core.contracts.selection": "Selection Pool Taken RowModel",
    "core.contracts.site": "Site Sites check_rank",
    "core.contracts.statistic": "Statistic rows_of",
    "core.contracts.unlearning": "Unlearning Outputs",
    "core.contracts.update": "Update TrainingPlan ParameterGroup Exchange",
    "core.deprecation": "LuthierDeprecationWarning",
    "core.errors": "LuthierError near",
    "core.numerics.crosscheck": "crosscheck",
    "core.numerics.delta": "Delta",
    "core.numerics.dimension": "Dimension intrinsic_dimension",
    "core.sites.answers": "Answers label_answers=answers batch_rows=rows_of label_logits=spoken",
    "core.sites.collect": "collect",
    "core.sites.heads": "HeadsSeen=Seen HeadOutputs=Replaced watch_heads=heads head_layers=layers_of "
    "check_heads=refuse_headless",
    "core.sites.probe": "dummy_inputs eval_mode",
    "core.sites.select": "select",
    "core.sites.structure": "base_modules base_tensor block_lists decoder_path features is_sharded unwrapped",
    "core.storage.store": "save load",
    "cli.parse": "Command",
    "cli.signature": "Flags Given",
    "combining": "combine",
    "combining.tally": "Combined",
    "comparing": "compare Comparison DataSet Record Study read_study records",
    "data": "Scorer load_data=load",
    "decoding": "decode Answer Member",
    "evaluating": "evaluate Evaluation generate predict Predicted",
    "evaluating.drawn": "Drawn",
    "evaluating.front": "Front",
    "evaluating.pareto": "pareto",
    "evaluating.rewrite": "rewrite Rewritten",
    "evaluating.generate": "Messages",
    "engine.settings": "Sampling",
    "examining.check": "check Checked",
    "examining.examine": "examine Examined",
    "examining.monitor": "monitor Monitored",
    "federating": "federate Federated Federation",
    "interop.convert": "convert",
    "interop.export": "export",
    "interop.import_adapter": "import_adapter",
    "kernels.backend": "cpu_backend",
    "measuring.measure": "measure Measurement",
    "methods.objectives.routing": "Routing",  # the examination of that name came later
    "methods.targeted_form": "TargetedForm",
    "models": "model Loaded",
    "training": "train Result Run Training",
    "training.stages": "run_plan Staged StagePlan Measured",
}
"""The public names by the module that defines them; `name=other` where it calls them otherwise."""


def _public(places: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    for module, names in places.items():
        for name, _, own in (each.partition("=") for each in names.split()):
            yield name, (f"luthier.{module}", own or name)


PUBLIC = dict(_public(PLACES))
"""`{public name: (module, the name there)}`."""

FORMER = {"Course": "TrainingPlan", "Memory": "ObjectiveState", "Piece": "TargetedForm"}
"""Former public names, by the present ones; they warn until they are removed."""
