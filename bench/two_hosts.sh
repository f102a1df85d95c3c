#!/usr/bin/env bash
# Two hosts on one machine: network namespaces joined by a rate-limited link, half of the cores each, a command across them
# under Open MPI, and all of it removed again. Needs root and iproute2.
#
#   bench/two_hosts.sh RATE RANKS_PER_HOST COMMAND...   e.g. bench/two_hosts.sh 1gbit 2 python -m bench.allreduce --of ordinary
#
# STRIKE=FILE strikes as soon as that file is there: the link is cut, for CUT_S seconds or for good; with KILL=1 everything on the
# second host is killed instead.
#
# A signal ends the command and removes all; after SIGKILL the command ends too, and the next start removes what is left. So names
# say whose they are: hpcai-PID-STARTED of the script's process.
set -euo pipefail
if (($# < 3)); then
    echo "usage: $0 RATE RANKS_PER_HOST COMMAND..." >&2
    exit 2
fi
rate=$1 per_host=$2
shift 2
temporary=${TMPDIR:-/tmp}

started() { # PID: when that process began, in the kernel's units; nothing if there is none
    local stat
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
    stat=${stat##*) }
    set -- $stat
    echo "${20}"
}

remove() { # NAME: the namespaces, their processes and the folder of that name
    local i
    for i in 1 2; do
        if [ -e "/run/netns/$1-$i" ]; then
            ip netns pids "$1-$i" | xargs -r kill -KILL 2>/dev/null || true
            ip netns del "$1-$i" 2>/dev/null || true
        fi
    done
    rm -rf "${temporary:?}/$1"
}

remove_of_the_dead() {
    local path name pid
    for path in /run/netns/hpcai-*-*-[12] "$temporary"/hpcai-*-*; do
        name=${path##*/}
        if [[ $name =~ ^(hpcai-([0-9]+)-([0-9]+))(-[12])?$ && $(started "${BASH_REMATCH[2]}") != "${BASH_REMATCH[3]}" ]]; then
            remove "$(sed -E 's/^(hpcai-[0-9]+-[0-9]+).*/\1/' <<<"$name")"
        fi
    done
}

name=hpcai-$$-$(started $$)
work=$temporary/$name
command='' striking=''

clean() {
    trap '' HUP INT QUIT TERM USR1 USR2 PIPE # nothing disturbs it
    if [ -n "$striking" ]; then kill "$striking" 2>/dev/null || true; fi
    if [ -n "$command" ] && kill -TERM "$command" 2>/dev/null; then wait "$command" 2>/dev/null || true; fi
    remove "$name"
}
trap clean EXIT
for signal in HUP INT QUIT TERM USR1 USR2 PIPE; do trap "exit $((128 + $(kill -l $signal)))" $signal; done

remove_of_the_dead
mkdir "$work"

# The token bucket holds what the link carries in 2 ms, 64 KB at least: little gets through for free.
burst=256
if [[ $rate == *mbit ]]; then burst=$((${rate%mbit} / 4)); fi
burst=$((burst < 64 ? 64 : burst > 256 ? 256 : burst))

for i in 1 2; do ip netns add "$name-$i"; done
ip link add hpa netns "$name-1" type veth peer name hpb netns "$name-2"
for i in 1 2; do
    ip -n "$name-$i" link set "$([ "$i" = 1 ] && echo hpa || echo hpb)" name eth0
    ip -n "$name-$i" addr add "10.77.7.$i/24" dev eth0
    ip -n "$name-$i" link set eth0 up
    ip -n "$name-$i" link set lo up
    # Linux's default congestion control, whatever this machine has: BBR mistakes the token bucket's bursts for bandwidth.
    ip -n "$name-$i" route replace 10.77.7.0/24 dev eth0 src "10.77.7.$i" congctl "${CONGESTION:-cubic}"
    ip netns exec "$name-$i" tc qdisc replace dev eth0 root tbf rate "$rate" burst ${burst}kb latency 50ms
done

strike() {
    while [ ! -e "$STRIKE" ]; do
        sleep 0.05
        if [ ! -e "$work" ]; then return; fi
    done
    if [ -n "${KILL:-}" ]; then
        ip netns pids "$name-2" | xargs -r kill -KILL
        return
    fi
    ip -n "$name-2" link set eth0 down
    if [ -n "${CUT_S:-}" ]; then
        sleep "$CUT_S"
        ip -n "$name-2" link set eth0 up
    fi
}
if [ -n "${STRIKE:-}" ]; then
    (trap - EXIT HUP INT QUIT TERM USR1 USR2 PIPE && strike) &
    striking=$!
fi

half=$(($(nproc) / 2))
cores() { if [ "$half" -eq 0 ]; then echo 0; elif [ "$1" = 1 ]; then echo "0-$((half - 1))"; else echo "$half-$((2 * half - 1))"; fi; }

# mpirun reaches the other "host" by this agent instead of ssh.
cat > "$work/agent" <<AGENT
#!/bin/bash
host=\$1; shift
exec taskset -c "$(cores 2)" ip netns exec "$name-\${host#host}" unshare --uts sh -c "hostname \$host; \$*"
AGENT
chmod +x "$work/agent"

# Ranks on different "hosts" share this machine's memory all the same: HPCAI_RANKS_PER_NODE keeps hpcai from using it. In the
# background, since a shell attends to signals between commands alone; with its standard input, which bash would take away.
setpriv --pdeathsig TERM taskset -c "$(cores 1)" ip netns exec "$name-1" \
    unshare --uts sh -c 'hostname host1; exec "$@"' host1 timeout -k 5 "${LIMIT_S:-500}" \
    env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 HPCAI_RANKS_PER_NODE="$per_host" TMPDIR="$work" \
    MASTER_ADDR=10.77.7.1 GLOO_SOCKET_IFNAME=eth0 \
    mpirun --prtemca plm_ssh_agent "$work/agent" --host "host1:$per_host,host2:$per_host" --map-by "ppr:$per_host:node" \
    --bind-to none -n $((2 * per_host)) -x HPCAI_RANKS_PER_NODE -x PATH -x MASTER_ADDR -x GLOO_SOCKET_IFNAME \
    --mca pml ob1 --mca btl tcp,self,sm --mca btl_tcp_if_include eth0 "$@" <&0 &
command=$!
wait "$command"
