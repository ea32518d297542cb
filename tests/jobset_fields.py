"""Which fields a JobSet has, as far as ours needs them."""

# What JobSet v1alpha2 and Kubernetes 1.34 know, from their types in Go.
POD_FAILURE_POLICY = {
  'rules': {
    'action': None,
    'onExitCodes': {'containerName': None, 'operator': None, 'values': None},
    'onPodConditions': {'type': None, 'status': None},
  }
}
CONTAINER = {
  'name': None,
  'image': None,
  'command': None,
  'args': None,
  'env': {'name': None, 'value': None, 'valueFrom': ...},
  'securityContext': ...,
  'resources': {'limits': ..., 'requests': ..., 'claims': ...},
  'volumeMounts': {
    'name': None,
    'mountPath': None,
    'readOnly': None,
    'subPath': None,
  },
}
POD = {
  'restartPolicy': None,
  'terminationGracePeriodSeconds': None,
  'nodeSelector': ...,
  'serviceAccountName': None,
  'securityContext': {
    'runAsNonRoot': None,
    'runAsUser': None,
    'runAsGroup': None,
    'fsGroup': None,
  },
  'tolerations': {
    'key': None,
    'operator': None,
    'value': None,
    'effect': None,
    'tolerationSeconds': None,
  },
  'containers': CONTAINER,
  'volumes': {
    'name': None,
    'persistentVolumeClaim': {'claimName': None, 'readOnly': None},
    'emptyDir': {'medium': None, 'sizeLimit': None},
  },
}
JOB = {
  'parallelism': None,
  'completions': None,
  'completionMode': None,
  'backoffLimit': None,
  'backoffLimitPerIndex': None,
  'activeDeadlineSeconds': None,
  'ttlSecondsAfterFinished': None,
  'podReplacementPolicy': None,
  'podFailurePolicy': POD_FAILURE_POLICY,
  'template': {'metadata': ..., 'spec': POD},
}
JOBSET = {
  'apiVersion': None,
  'kind': None,
  'metadata': {'name': None, 'labels': ..., 'annotations': ...},
  'spec': {
    'network': {
      'enableDNSHostnames': None,
      'subdomain': None,
      'publishNotReadyAddresses': None,
    },
    'successPolicy': {'operator': None, 'targetReplicatedJobs': None},
    'failurePolicy': {
      'maxRestarts': None,
      'restartStrategy': None,
      'rules': {
        'name': None,
        'action': None,
        'onJobFailureReasons': None,
        'onJobFailureMessagePatterns': None,
        'targetReplicatedJobs': None,
      },
    },
    'suspend': None,
    'coordinator': {'replicatedJob': None, 'jobIndex': None, 'podIndex': None},
    'ttlSecondsAfterFinished': None,
    'replicatedJobs': {
      'name': None,
      'groupName': None,
      'replicas': None,
      'dependsOn': ...,
      'template': {'metadata': ..., 'spec': JOB},
    },
  },
}


def unknown(found, known, path=''):
  """Fields that no such object has; `...` has any, None is a leaf."""
  if isinstance(found, list):
    for item in found:
      yield from unknown(item, known, path)
  elif isinstance(found, dict) and known is not ...:
    for key, value in found.items():
      here = f'{path}.{key}'
      if key in (known or {}):
        yield from unknown(value, known[key], here)
      else:
        yield here
