"""A profile as one page: summary, plots, tables. Needs no network and no other file.

Names come from models and artifacts of anyone: templates escape everything but our own SVG.
"""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from targets.npu.price.stalls import CLASSES
from targets.reading import reading
from tvmq.pages.profile_plots import profile_plots
from tvmq.profile.profile import Profile
from tvmq.profile.table import off_the_npu, operator_table, totals

CLASS_COLOURS = dict(
    zip(
        CLASSES,
        (
            *("#3b82c4", "#86b7e2", "#d9b72e", "#d9722e", "#eda35c", "#a5742a"),
            *("#d9534f", "#9b3d3d", "#a98be0", "#3f9e63", "#6b7280", "#9aa5b455"),
        ),
        strict=True,
    )
)


def profile_page(profile: Profile) -> str:
    """The page's text.

    Raises:
        InputError: the manifest says of the reconstruction what no build does.
    """
    with reading(f"{profile.artifact}: reconstruction in its manifest", "what a build says of it"):
        reconstruction = Markup(
            render("reconstruction.html", reconstruction=profile.reconstruction)
        )
    return render(
        "profile.html",
        profile=profile,
        totals=list(totals(profile)),
        plots=profile_plots(profile),
        table=operator_table(profile),
        elsewhere=off_the_npu(profile),
        class_colours=CLASS_COLOURS,
        reconstruction=reconstruction,
    )


def render(template: str, **values: object) -> str:
    """A template of this package with its values; a value that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("tvmq.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
