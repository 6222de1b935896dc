"""The fields of Kubernetes (core/v1, networking.k8s.io/v1) and KubeRay (ray.io/v1, from 1.5.1 on) that deploy/kubernetes uses.

Names and types as their published schemas have them; whatever else a file says is refused, so a misspelt field is found.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(m|Ki|Mi|Gi|Ti)?$")] | Annotated[int, Field(ge=0)]
Labels = dict[Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*$")], str]
MEMORY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class Object(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Object):
    name: Name


class PodMetadata(Object):
    labels: Labels


class Resources(Object):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity] = {}


class Capabilities(Object):
    drop: list[Literal["ALL"]]


class ContainerSecurity(Object):
    allowPrivilegeEscalation: Literal[False]
    capabilities: Capabilities


class Profile(Object):
    type: Literal["RuntimeDefault"]


class PodSecurity(Object):
    runAsNonRoot: Literal[True]
    runAsUser: int
    runAsGroup: int
    fsGroup: int
    fsGroupChangePolicy: Literal["OnRootMismatch", "Always"]
    seccompProfile: Profile


class Exec(Object):
    command: list[str]


class Handler(Object):
    exec: Exec


class Lifecycle(Object):
    preStop: Handler


class Variable(Object):
    name: str
    value: str


class Mount(Object):
    name: Name
    mountPath: Annotated[str, Field(pattern="^/")]
    readOnly: bool = False


class Container(Object):
    name: Name
    image: str
    securityContext: ContainerSecurity
    lifecycle: Lifecycle | None = None
    env: list[Variable] = []
    resources: Resources
    volumeMounts: list[Mount] = []


class Claim(Object):
    claimName: Name


class ConfigMap(Object):
    name: Name


class EmptyDir(Object):
    medium: Literal["Memory"]
    sizeLimit: Quantity


class Volume(Object):
    name: Name
    persistentVolumeClaim: Claim | None = None
    configMap: ConfigMap | None = None
    emptyDir: EmptyDir | None = None


class Pod(Object):
    containers: list[Container]
    volumes: list[Volume] = []
    restartPolicy: Literal["Always", "OnFailure", "Never"] = "Always"
    automountServiceAccountToken: bool = True
    securityContext: PodSecurity
    terminationGracePeriodSeconds: int = 30


class Template(Object):
    metadata: PodMetadata
    spec: Pod


class HeadGroup(Object):
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(Object):
    groupName: Name
    replicas: int
    minReplicas: int
    maxReplicas: int
    rayStartParams: dict[str, str]
    template: Template


class Authentication(Object):
    mode: Literal["token", "disabled"]


class Autoscaler(Object):
    version: Literal["v1", "v2"]
    upscalingMode: Literal["Default", "Aggressive", "Conservative"]
    idleTimeoutSeconds: int
    securityContext: ContainerSecurity
    resources: Resources


class ClusterSpec(Object):
    rayVersion: str
    authOptions: Authentication
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayCluster(Object):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class JobSpec(Object):
    entrypoint: str
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    submitterPodTemplate: Template
    rayClusterSpec: ClusterSpec


class RayJob(Object):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class ClaimSpec(Object):
    accessModes: list[Literal["ReadWriteMany"]]
    resources: Resources


class PersistentVolumeClaim(Object):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    metadata: Metadata
    spec: ClaimSpec


class Selector(Object):
    matchLabels: Labels = {}


class Peer(Object):
    podSelector: Selector | None = None
    namespaceSelector: Selector | None = None


class Port(Object):
    protocol: Literal["TCP", "UDP", "SCTP"]
    port: int


class Ingress(Object):
    from_: list[Peer] = Field(alias="from")
    ports: list[Port] = []


class PolicySpec(Object):
    podSelector: Selector
    policyTypes: list[Literal["Ingress", "Egress"]]
    ingress: list[Ingress]


class NetworkPolicy(Object):
    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: Metadata
    spec: PolicySpec


Manifest = RayJob | RayCluster | PersistentVolumeClaim | NetworkPolicy
read = TypeAdapter(Annotated[Manifest, Field(discriminator="kind")]).validate_python


def in_bytes(quantity: str | int) -> int:
    """A quantity of memory in bytes."""
    text = str(quantity)
    return int(text[:-2]) * MEMORY[text[-2:]] if text[-2:] in MEMORY else int(text)
