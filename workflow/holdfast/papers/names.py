"""Titles of what a run's config names, and why something with a title was not measured."""

from holdfast.errors import HoldfastError

#: Titles of what is no entry of the config, or has none there: the control, and all detectors together.
OWN_TITLES = {("defences", "none"): "Original", ("detectors", "union"): "all detectors"}
UNION = OWN_TITLES["detectors", "union"]
_GROUPS = {
    "datasets": "data set",
    "deepfakes": "deepfake model",
    "detectors": "face detector",
    "defences": "defence",
}


class Names:
    """Titles of the plan's names, and why something with a title was not measured."""

    def __init__(self, plan, seeds=None):
        self.groups = {}
        for group, word in _GROUPS.items():
            entries = {name: entry.get("title", name) for name, entry in plan[group].items()}
            for title in entries.values():
                owners = [name for name, other in entries.items() if other == title]
                if len(owners) > 1:
                    raise HoldfastError(
                        f"the {word}s {' and '.join(owners)} share a title",
                        found=title,
                        expected="one title each, or their rows could not be told apart",
                        repair=f"give one of them another title under {group} in the config",
                    )
            self.groups[group] = entries
        self.skips = {
            (group, self.groups[group][name]): entry["skip"]
            for group in _GROUPS
            for name, entry in plan[group].items()
            if entry.get("skip")
        }
        self.training = self.title("datasets", plan["training_set"])
        attacker = plan.get("attacker") or {}
        chosen, retrained = attacker.get("detector"), attacker.get("models")
        self.attacker = self.title("detectors", chosen) if chosen else None
        #: Titles of the models that the attacker does not retrain, and of the defences that he never meets.
        self.left_alone = self._others("deepfakes", retrained)
        self.uncollected = self._others("defences", attacker.get("defences"))
        #: The seeds whose harvest he retrains on, and those of this study, where these are not all.
        self.attackers_seeds = _fewer(attacker.get("seeds"), plan["seeds"])
        self.studys_seeds = _fewer(seeds, plan["seeds"])
        self.defences_seeds = {
            entry.get("title", name): _fewer(entry.get("seeds"), plan["seeds"])
            for name, entry in plan["defences"].items()
        }

    def _others(self, group, chosen):
        running = self.titles(group, skipped=False)
        chosen = running if chosen is None else [self.title(group, name) for name in chosen]
        return [title for title in running if title not in chosen]

    def compared(self, models):
        """Of these models those of which there is a before and an after; all if there is none such."""
        return [title for title in models if title not in self.left_alone] or models

    def title(self, group, name):
        return self.groups[group].get(name, OWN_TITLES.get((group, name), name))

    def titles(self, group, skipped=True):
        """Titles in the order of the config."""
        return [t for t in self.groups[group].values() if skipped or (group, t) not in self.skips]

    @property
    def control(self):
        """Title of the defence `none`."""
        return self.title("defences", "none")

    def absent(self, group, title):
        """Why nothing with this title was measured, or None."""
        if (group, title) in self.skips:
            return f"{title} is left out: {self.skips[group, title]}"
        if title not in self.groups[group].values():
            ending = "has no source" if group == "datasets" else "is not part"
            return f"the {_GROUPS[group]} {title} {ending} {'of' if group != 'datasets' else 'in'} this run"
        return None


def _fewer(seeds, all_seeds):
    return seeds if seeds and len(seeds) < len(all_seeds) else []
