"""Provenance: an XMP packet in each output file that describes how the picture was made.

Every packet has IPTC's digital source type for pictures edited with generative AI; a full one also has the edit's
parameters. Packets hold no text of the client's and no dates, so that the same edit gives the same file.

The terms are from the IPTC Photo Metadata Standard 2025.1 and https://cv.iptc.org/newscodes/digitalsourcetype/, the
packet's frame is from ISO 16684-1.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias
from xml.sax.saxutils import escape

from serve_app.config import EditorSettings, LoraSettings, WeightsSource
from serve_app.edits.request import EditRequest

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
IPTC_NAMESPACE = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
# A unique name that needs no domain. Readers identify the terms by it, so it never changes.
OUR_NAMESPACE = "urn:uuid:18683af0-98cc-40de-b83d-2f74e05fcc2f#"

_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{IPTC_NAMESPACE}" xmlns:cameraEdit="{OUR_NAMESPACE}">'
    "{properties}"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_Value: TypeAlias = "str | int | float | Sequence[Mapping[str, _Value]]"
_Properties: TypeAlias = Mapping[str, _Value]

_MARK: _Properties = {"Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE}


class Provenance:
    """Makes the packets of one editor's pictures, by its `provenance` setting."""

    def __init__(self, settings: EditorSettings) -> None:
        self._kind = settings.provenance
        self._base = _base(settings)
        self._fused = settings.fused_loras

    def packet(self, request: EditRequest, loras: Sequence[LoraSettings] = ()) -> bytes:
        """The XMP packet for the pictures of `request`; empty if the setting is "none".

        Args:
            loras: the adapters that it uses beside the fused ones, with their weights.
        """
        if self._kind == "none":
            return b""
        if self._kind == "mark":
            return marking_packet()
        properties = {**_MARK, **self._base, **_loras([*self._fused, *loras]), **_parameters(request)}
        return _PACKET.format(properties=_elements(properties)).encode()


def marking_packet() -> bytes:
    """The XMP packet that holds nothing but the mark."""
    return _PACKET.format(properties=_elements(_MARK)).encode()


def _base(settings: EditorSettings) -> _Properties:
    base = public_source(settings.base)
    system = {"Iptc4xmpExt:AISystemUsed": base["path"]}
    version = {"Iptc4xmpExt:AISystemVersionUsed": base["revision"]} if "revision" in base else {}
    return {**system, **version}


def _loras(loras: Sequence[LoraSettings]) -> _Properties:
    return {"cameraEdit:loras": [_lora(lora) for lora in loras]} if loras else {}


def _lora(lora: LoraSettings) -> _Properties:
    return _ours({"name": lora.name, **public_source(lora.source), "file": lora.file, "weight": lora.weight})


def public_source(source: WeightsSource) -> dict[str, str]:
    """Path and revision as configured; of a folder only its name, since its path describes the server."""
    folder = Path(source.path)
    if source.path.startswith(("/", ".", "~")) or folder.is_dir():
        return {"path": folder.name}
    return {"path": source.path} | ({} if source.revision is None else {"revision": source.revision})


def _parameters(request: EditRequest) -> _Properties:
    """By their names in a request. Without the negative prompt, which is the client's text."""
    sampling = request.sampling
    parameters = {
        "seed": sampling.seed,
        "num_inference_steps": sampling.num_inference_steps,
        "true_cfg_scale": float(sampling.true_cfg_scale),
    }
    pose = {} if request.camera is None else vars(request.camera)
    return _ours({**parameters, **pose})


def _ours(values: _Properties) -> _Properties:
    return {f"cameraEdit:{name}": value for name, value in values.items()}


def _elements(properties: _Properties) -> str:
    return "".join(f"<{name}>{_content(value)}</{name}>" for name, value in properties.items())


def _content(value: _Value) -> str:
    if isinstance(value, str | int | float):
        return escape(_NOT_XML.sub("\ufffd", str(value)))
    items = (f'<rdf:li rdf:parseType="Resource">{_elements(item)}</rdf:li>' for item in value)
    return f"<rdf:Seq>{''.join(items)}</rdf:Seq>"
