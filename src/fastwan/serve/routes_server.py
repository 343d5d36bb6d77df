"""The routes about the server itself."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fastwan.serve.access import Client, TheService
from fastwan.serve.failures import Refused
from fastwan.serve.metrics import CONTENT_TYPE
from fastwan.serve.routes_videos import errors
from fastwan.serve.service import Service
from fastwan.serve.wire import Health, Model, ModelList, seconds_text, size_text

router = APIRouter(tags=["server"])


@router.get("/v1/models", responses=errors(401))
def list_models(request: Request, service: TheService, client: Client) -> ModelList:
    """What there is to make videos with, and what it can make."""
    return ModelList(data=[_model(request, service)])


@router.get("/v1/models/{model_id}", responses=errors(401, 404))
def retrieve_model(model_id: str, request: Request, service: TheService, client: Client) -> Model:
    """The same, by its name."""
    model = _model(request, service)
    if model_id != model.id:
        raise Refused(
            404, f"there is no model {model_id}", code="model_not_found", param="model_id"
        )
    return model


def _model(request: Request, service: Service) -> Model:
    offer = service.offer
    return Model(
        id=offer.model,
        created=request.app.state.created,
        sizes=[size_text(each) for each in offer.shapes],
        seconds=[seconds_text(each.num_frames, offer.fps) for each in offer.shapes],
        num_frames=[each.num_frames for each in offer.shapes],
        samplers=list(offer.samplers),
        fps=offer.fps,
        device=offer.device,
    )


@router.get("/health", responses={503: {"model": Health}})
def health(service: TheService) -> JSONResponse:
    """Whether the server can make videos, now or once it is warm."""
    return _told(service, good=service.worker.fault is None)


@router.get("/ready", responses={503: {"model": Health}})
def ready(service: TheService) -> JSONResponse:
    """Whether it takes requests and makes them at once: warm, and not about to end."""
    return _told(service, good=_status(service) == "ok")


def _status(service: Service) -> str:
    if service.worker.fault is not None:
        return "failing"
    if service.is_draining:
        return "draining"
    return "ok" if service.worker.ready.is_set() else "starting"


def _told(service: Service, *, good: bool) -> JSONResponse:
    health = Health.model_validate({"status": _status(service), "waiting": len(service.queue)})
    return JSONResponse(health.model_dump(), 200 if good else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE: {}}}})
def metrics(service: TheService) -> Response:
    """Figures for Prometheus."""
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})
