"""The dataset card of prepared data: with it, ``datasets.load_dataset(folder)`` opens the four splits as they stand."""

from __future__ import annotations

import yaml

from pipeline.records import Manifest

_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)


def dataset_card(manifest: Manifest) -> str:
    """Markdown with the metadata of the Hugging Face Hub: which files belong to which split, task, size.

    Without it a reader would take the indexes, which have other columns, for images. The text depends on the
    manifest's contents alone and names no source, which may be a private path.
    """
    total = manifest.totals["images"]
    metadata = {
        "pretty_name": manifest.name,
        "task_categories": ["image-to-image"],
        "tags": ["unpaired-image-to-image-translation"],
        "size_categories": [next((name for most, name in _SIZES if total < most), "n>10M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}/*.parquet"} for split in manifest.splits],
            }
        ],
    }
    domains = {domain.upper(): about.name for domain, about in manifest.domains.items()}
    rows = "\n".join(
        f"| `{split}` | {domains[split[-1]]} | {about.rows} | {about.masks} |"
        for split, about in manifest.splits.items()
    )
    return f"""\
---
{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---
# {manifest.name}

Unpaired images of two domains, prepared for `agit`: {domains["A"]} (A) and {domains["B"]} (B). Training images are
stored at {manifest.load_size} px, test images at {manifest.image_size} px.

| split | domain | images | masks |
|---|---|---|---|
{rows}

```python
from datasets import load_dataset

images = load_dataset("PATH/OF/THIS/FOLDER")
images["trainA"][0]["image"]  # a PIL image
```

Columns: `image`, `mask` (null where there is none), `width`, `height` (pixels) and `sha256` (of the encoded image).
`manifest.json` has checksums, duplicates and what was quarantined; `index/` is for the training's reader.
"""
