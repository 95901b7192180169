"""Read samples with the models that datamodel-code-generator has generated here: python use_models.py samples.json"""

import json
import sys
from pathlib import Path

import models
from pydantic import ValidationError

for sample in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    model, data = getattr(models, sample["type"]), getattr(models, f"{sample['type']}Data")
    event = model.model_validate(sample)
    assert isinstance(event.data, data)
    assert event.model_dump(mode="json", exclude_unset=True) == sample
    try:
        model.model_validate(sample | {"data": {}})
    except ValidationError:
        continue
    raise AssertionError(f"{sample['type']} is read without its data")
