"""Explain two real photos with the embedded model and say where the pictures are."""

import subprocess
import sys
from pathlib import Path

from PIL import Image
from skimage import data

FOLDER = Path("demo")


def main() -> None:
    """Write the photos (both CC0, shipped with scikit-image), then run the command that a user would."""
    FOLDER.mkdir(exist_ok=True)
    photos = {"cat.png": data.chelsea(), "coffee.png": data.coffee()}
    for name, pixels in photos.items():
        Image.fromarray(pixels).save(FOLDER / name)
    pellucid = str(Path(sys.executable).parent / "pellucid")
    for arguments in (["explain", *photos, "--force"], ["compare", "cat.png", "--force"]):
        print("$ pellucid", " ".join(arguments), flush=True)
        if code := subprocess.run([pellucid, *arguments], cwd=FOLDER).returncode:
            sys.exit(code)
    print("\nThe pictures are:")
    for path in sorted(FOLDER.resolve().glob("*.*.png")):
        print(f"  {path}")


if __name__ == "__main__":
    main()
