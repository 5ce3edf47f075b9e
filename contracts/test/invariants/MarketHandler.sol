// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {IJobEscrow, JobState, Order, Result, SignedVoucher} from "../../src/interfaces/IJobEscrow.sol";
import {KeyVoucher} from "../Base.sol";
import {TestToken} from "../mocks/TestToken.sol";
import {Batching} from "./Batching.sol";

/// @notice Does everything that anybody may do to the escrow and the registry, in any order.
/// @dev Knows of each call whether it must succeed, and asserts that it does, or that it does not. Paused or not makes no
/// difference to that but for deposits, new jobs and registrations.
abstract contract MarketHandler is Batching {
    /// @dev Makes the call as `by` and asserts its outcome.
    function _call(address by, address to, uint256 value, bytes memory data, bool succeeds, string memory what)
        internal
        returns (bool done)
    {
        if (value != 0) vm.deal(by, value);
        vm.prank(by);
        (done,) = to.call{value: value}(data);
        assertEq(done, succeeds, what);
        if (done) ++happened[what];
    }

    function _escrowCall(address by, bytes memory data, bool succeeds, string memory what) internal returns (bool) {
        return _call(by, address(escrow), 0, data, succeeds, what);
    }

    function _pick(uint256 seed) internal view returns (uint256 index, Order memory order, JobState state) {
        index = seed % _ids.length;
        order = _orders[index];
        state = _stateOf(index);
    }

    /// @dev The first order from a random one on that is in either state, if there is any.
    function _find(uint256 seed, JobState a, JobState b) internal view returns (uint256 index, bool found) {
        for (uint256 i = 0; i < _ids.length; ++i) {
            index = (seed % _ids.length + i) % _ids.length;
            JobState state = _stateOf(index);
            if (state == a || state == b) return (index, true);
        }
    }

    // ── Requesters: money ───────────────────────────────────────────────────────────────────────────────────────────

    function deposit(uint256 r, uint256 t, uint256 amount, uint256 how) external booked {
        (address from, address token_) = (_who[r % REQUESTERS], _tokens[t % TOKENS]);
        amount = bound(amount, 100, 6 ether);
        if (token_ != NATIVE) TestToken(token_).mint(from, amount);
        uint256 before = _held(token_);
        bytes memory data;
        bool permit = how % 3 == 0 && token_ != NATIVE;
        // The permit is no signature at all: the allowance is what counts.
        if (permit) data = abi.encodeCall(escrow.depositWithPermit, (token_, amount, 0, 0, 0, 0));
        else if (how % 3 == 1) data = abi.encodeCall(escrow.depositFor, (_who[how % REQUESTERS], token_, amount));
        else data = abi.encodeCall(escrow.deposit, (token_, amount));
        uint256 value = token_ == NATIVE ? amount : 0;
        _call(from, address(escrow), value, data, !escrow.paused(), permit ? "depositWithPermit" : "deposit");
        _in[token_] += _held(token_) - before;
    }

    function thaw(uint256 r, uint256 t, uint256 amount) external booked {
        (address from, address token_) = (_who[r % REQUESTERS], _tokens[t % TOKENS]);
        uint256 free = _free(from, token_);
        amount = bound(amount, 0, free + free / 8);
        bytes memory data = abi.encodeCall(escrow.thaw, (token_, amount));
        _escrowCall(from, data, amount != 0 && amount <= free, "thaw");
    }

    function withdraw(uint256 r, uint256 t) external booked {
        (address from, address token_) = (_who[r % REQUESTERS], _tokens[t % TOKENS]);
        (uint128 free, uint128 thawing, uint64 thawEnd) = escrow.account(from, token_);
        bool may = thawing != 0 && block.timestamp >= thawEnd;
        if (_escrowCall(from, abi.encodeCall(escrow.withdraw, (token_, from)), may, "withdraw")) {
            _out[token_] += thawing;
            _assertAccount(from, token_, free, 0, 0);
        }
    }

    function reserve(uint256 r, uint256 n, uint256 t, uint256 amount) external booked {
        (address from, address token_) = (_who[r % REQUESTERS], _tokens[t % TOKENS]);
        uint256 free = _free(from, token_);
        amount = bound(amount, 0, free + free / 8);
        bytes memory data = abi.encodeCall(escrow.reserve, (_nodes[n % NODES].addr, token_, amount));
        _escrowCall(from, data, amount != 0 && amount <= free, "reserve");
    }

    function thawReservation(uint256 r, uint256 n, uint256 t, uint256 amount) external booked {
        (address from, address to, address token_) = (_who[r % REQUESTERS], _nodes[n % NODES].addr, _tokens[t % TOKENS]);
        (uint256 reserved,,) = escrow.reservation(from, to, token_);
        amount = bound(amount, 0, reserved + reserved / 8);
        bytes memory data = abi.encodeCall(escrow.thawReservation, (to, token_, amount));
        _escrowCall(from, data, amount != 0 && amount <= reserved, "thawReservation");
    }

    function releaseReservation(uint256 r, uint256 n, uint256 t) external booked {
        (address from, address to, address token_) = (_who[r % REQUESTERS], _nodes[n % NODES].addr, _tokens[t % TOKENS]);
        (, uint256 thawing, uint64 thawEnd) = escrow.reservation(from, to, token_);
        bool may = thawing != 0 && block.timestamp >= thawEnd;
        _escrowCall(from, abi.encodeCall(escrow.releaseReservation, (to, token_)), may, "releaseReservation");
    }

    function authorize(uint256 r, uint256 t, uint256 cap, uint256 time) external booked {
        (address from, address key, address token_) =
            (_who[r % REQUESTERS], _sessionKeys[r % REQUESTERS].addr, _tokens[t % TOKENS]);
        (uint128 left, uint64 until) = escrow.session(from, key, token_);
        cap = bound(cap, 0, 10 ether);
        uint64 expiry = uint64(block.timestamp + bound(time, 0, 5 days));
        bool may = until < block.timestamp || (cap >= left && expiry >= until);
        _escrowCall(
            from, abi.encodeCall(escrow.authorizeSession, (key, token_, uint128(cap), expiry)), may, "authorize"
        );
    }

    function revoke(uint256 r, uint256 t) external booked {
        (address from, address key, address token_) =
            (_who[r % REQUESTERS], _sessionKeys[r % REQUESTERS].addr, _tokens[t % TOKENS]);
        _escrowCall(from, abi.encodeCall(escrow.revokeSession, (key, token_)), true, "revoke");
    }

    // ── Requesters: jobs ────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev A requester does not open what a voucher of its counts.
    function open(uint256 seed) external booked {
        (uint256 index, Order memory order, JobState state) = _pick(seed);
        if (order.nonce <= _signedFor[_channelId(order.requester, _nodeFor(index).addr, order.token)]) return;
        bool may = state == JobState.None && block.timestamp <= order.deadline && !escrow.paused();
        uint256 value;
        if (order.token == NATIVE && seed >> 64 & 1 == 0) value = order.maxPrice;
        else may = may && _free(order.requester, order.token) >= order.maxPrice;
        if (_call(
                order.requester, address(escrow), value, abi.encodeCall(escrow.openJob, (order, _spec())), may, "open"
            )) {
            _in[NATIVE] += value;
            _opened[_ids[index]] = true;
        }
    }

    function cancel(uint256 seed) external booked {
        (uint256 index, Order memory order, JobState state) = _pick(seed);
        bool may = (state == JobState.None || state == JobState.Open) && escrow.cancelAt(_ids[index]) == 0;
        _escrowCall(order.requester, abi.encodeCall(escrow.cancelJob, (order)), may, "cancel");
    }

    function refund(uint256 a, uint256 b) external booked {
        (uint256 index,) = _find(a, JobState.Open, JobState.Open);
        if (b >> 64 & 31 == 0) _assertRefunds(_two(index, b));
        escrow.refundExpired(_two(index, b));
    }

    function accept(uint256 seed) external booked {
        (uint256 index, bool found) = _find(seed, JobState.Submitted, JobState.Disputed);
        Order memory order = _orders[index];
        _escrowCall(order.requester, abi.encodeCall(escrow.accept, (order)), found, "accept");
    }

    function dispute(uint256 seed) external booked {
        (uint256 index, bool found) = _find(seed, JobState.Submitted, JobState.Submitted);
        Order memory order = _orders[index];
        (,, uint64 finalizeAt,) = escrow.job(_ids[index]);
        (uint128 free, uint128 thawing,) = escrow.account(order.requester, order.token);
        bool may = found && order.arbiter != address(0) && block.timestamp < finalizeAt
            && uint256(free) + thawing >= uint256(order.maxPrice) * 500 / 10_000;
        _escrowCall(order.requester, abi.encodeCall(escrow.dispute, (order)), may, "dispute");
    }

    function resolve(uint256 seed, uint256 pay, uint256 slash) external booked {
        (uint256 index, bool found) = _find(seed, JobState.Disputed, JobState.Disputed);
        Order memory order = _orders[index];
        (,, uint64 decideBy,) = escrow.job(_ids[index]);
        uint16 payNodeBps = pay & 1 == 0 ? 10_000 : uint16(bound(pay, 0, 10_000));
        uint16 slashBps = uint16(bound(slash, 0, 10_000));
        bool may = found && block.timestamp < decideBy;
        _escrowCall(arbiter, abi.encodeCall(escrow.resolve, (order, payNodeBps, slashBps)), may, "resolve");
    }

    // ── Nodes and settlers ──────────────────────────────────────────────────────────────────────────────────────────

    function submit(uint256 a, uint256 b, uint256 harm) external booked {
        Result[] memory results = new Result[](2);
        results[0] = _resultOf(a % _ids.length);
        results[1] = _resultOf(b % _ids.length);
        bool harmed = a % _ids.length != b % _ids.length && harm % 4 == 0;
        bytes32 jobId = _ids[a % _ids.length];
        if (harmed) _harm(results[0], harm >> 8);
        if (harm >> 64 & 31 == 0) _assertResults(results);
        _forbidden[jobId] = harmed;
        vm.prank(settler);
        escrow.submitResults(results);
        _forbidden[jobId] = false;
    }

    /// @dev Signed by everybody who may have to.
    function _resultOf(uint256 index) internal view returns (Result memory result) {
        Order memory order = _orders[index];
        result = _result(order, _nodeFor(index), _priceOf(index));
        if (_stateOf(index) == JobState.None) result.orderSignature = _sign(_keys[_requesterOf(index)], _ids[index]);
    }

    /// @dev One change that no signature allows.
    function _harm(Result memory result, uint256 how) internal view {
        if (how % 5 == 0) result.price += 1;
        else if (how % 5 == 1) result.resultHash = 0;
        else if (how % 5 == 2) result.node = result.node == node.addr ? otherNode.addr : node.addr;
        else if (how % 5 == 3) result.receiptSignature[how % 64] ^= 0x01;
        else result.order.maxFeeBps += 1;
    }

    function finalize(uint256 a, uint256 b) external booked {
        (uint256 index,) = _find(a, JobState.Submitted, JobState.Disputed);
        if (b >> 64 & 31 == 0) _assertFinalizes(_two(index, b));
        escrow.finalize(_two(index, b));
    }

    function _two(uint256 a, uint256 b) internal view returns (Order[] memory orders) {
        orders = new Order[](2);
        (orders[0], orders[1]) = (_orders[a % _ids.length], _orders[b % _ids.length]);
    }

    /// @dev A voucher of each of two requesters, by its key or its session key, one of them perhaps for more than was signed.
    function redeem(uint256 r, uint256 n, uint256 t, uint256 upTo, uint256 how) external booked {
        (r, n, t) = (r % REQUESTERS, n % NODES, t % TOKENS);
        uint64 covered = uint64(1 + upTo % PER_PAIR);
        KeyVoucher[] memory vouchers = new KeyVoucher[](2);
        for (uint256 i = 0; i < 2; ++i) {
            uint256 by = (r + i) % REQUESTERS;
            uint128 cumulative = _signVoucher(by, n, t, covered);
            bytes32 digest = _voucherDigest(_who[by], _nodes[n].addr, _tokens[t], cumulative, covered);
            Vm.Wallet storage key = (how >> i) & 1 == 0 ? _keys[by] : _sessionKeys[by];
            (bytes32 sigR, bytes32 sigVs) = vm.signCompact(key.privateKey, digest);
            if (how >> 8 & 7 == i) cumulative += 1;
            vouchers[i] = KeyVoucher(_who[by], cumulative, covered, sigR, sigVs);
        }
        if (how >> 64 & 31 == 0) _assertRedeems(n, t, vouchers);
        address caller = _redeemer(n, how >> 16);
        bytes memory data = _redeemCall(_nodes[n].addr, _tokens[t], vouchers);
        bool may = caller == _nodes[n].addr || escrow.isSettler(_nodes[n].addr, caller);
        uint256 before = _spendable(r, t);
        uint256 claimed = _claimedOf(r, n, t);
        _escrowCall(caller, data, may, "redeem");
        // Whatever left a session key's cap was paid.
        assertLe(before - _spendable(r, t), _claimedOf(r, n, t) - claimed, "spent more than was paid");
    }

    function _signVoucher(uint256 r, uint256 n, uint256 t, uint64 covered) internal returns (uint128) {
        bytes32 id = _channelId(_who[r], _nodes[n].addr, _tokens[t]);
        if (covered > _signedFor[id]) _signedFor[id] = covered;
        return _owedByVoucher(r, n, t, covered);
    }

    function _spendable(uint256 r, uint256 t) internal view returns (uint256 left) {
        (left,) = escrow.session(_who[r], _sessionKeys[r].addr, _tokens[t]);
    }

    function _claimedOf(uint256 r, uint256 n, uint256 t) internal view returns (uint256 claimed) {
        (claimed,) = escrow.channel(_who[r], _nodes[n].addr, _tokens[t]);
    }

    /// @dev Mostly the node, else somebody who may be its settler.
    function _redeemer(uint256 n, uint256 how) internal view returns (address) {
        if (how % 4 != 0) return _nodes[n].addr;
        return how % 8 == 0 ? settler : _who[0];
    }

    /// @dev Shows all later orders of the pair, whether they count or not. Every other voucher covers a result that waits.
    function redeemSigned(uint256 r, uint256 n, uint256 t, uint256 upTo, uint256 how) external booked {
        (uint256 index, bool found) = _find(upTo, JobState.Submitted, JobState.Disputed);
        if (found && how & 2 == 0) {
            (r, t, n) = (_requesterOf(index), index / PER_PAIR, index % PER_PAIR);
            upTo = n;
        }
        (r, n, t) = (r % REQUESTERS, n % NODES, t % TOKENS);
        SignedVoucher[] memory vouchers = new SignedVoucher[](1);
        vouchers[0] = _signedVoucherOf(r, n, t, uint64(1 + upTo % PER_PAIR), how & 1 == 0 ? _keys[r] : _sessionKeys[r]);
        address to = _nodes[n].addr;
        address caller = _redeemer(n, how >> 8);
        bool may = caller == to || escrow.isSettler(to, caller);
        _escrowCall(caller, abi.encodeCall(escrow.redeemSigned, (to, _tokens[t], vouchers)), may, "redeemSigned");
    }

    function _signedVoucherOf(uint256 r, uint256 n, uint256 t, uint64 covered, Vm.Wallet storage key)
        internal
        returns (SignedVoucher memory)
    {
        uint128 cumulative = _signVoucher(r, n, t, covered);
        bytes32 digest = _voucherDigest(_who[r], _nodes[n].addr, _tokens[t], cumulative, covered);
        return SignedVoucher(_who[r], cumulative, covered, _sign(key, digest), _later(r, t, covered));
    }

    function _later(uint256 r, uint256 t, uint64 covered) internal view returns (Order[] memory orders) {
        uint256 start = (r * TOKENS + t) * PER_PAIR;
        orders = new Order[](PER_PAIR - covered);
        for (uint256 i = 0; i < orders.length; ++i) {
            orders[i] = _orders[start + covered + i];
            for (uint256 k = i; k != 0 && escrow.jobIdOf(orders[k]) < escrow.jobIdOf(orders[k - 1]); --k) {
                (orders[k], orders[k - 1]) = (orders[k - 1], orders[k]);
            }
        }
    }

    function setSettler(uint256 n, uint256 allowed) external booked {
        _escrowCall(
            _nodes[n % NODES].addr, abi.encodeCall(escrow.setSettler, (settler, allowed % 2 == 0)), true, "setSettler"
        );
    }

    function withdrawEarned(uint256 n, uint256 t) external booked {
        (address to, address token_) = (_nodes[n % NODES].addr, _tokens[t % TOKENS]);
        uint256 amount = escrow.earned(to, token_);
        bytes memory data = abi.encodeCall(escrow.withdrawEarned, (token_, to));
        if (_escrowCall(to, data, amount != 0, "withdrawEarned")) {
            _out[token_] += amount;
            _withdrawn[to][token_] += amount;
        }
    }

    // ── Stakes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    function stake(uint256 n, uint256 amount) external {
        amount = bound(amount, 1, 2 ether);
        _call(
            settler, address(registry), amount, abi.encodeCall(registry.stake, (_nodes[n % NODES].addr)), true, "stake"
        );
        _staked += amount;
    }

    function startUnbond(uint256 n, uint256 amount) external {
        address by = _nodes[n % NODES].addr;
        (uint128 active, uint128 unbonding,) = registry.stakeOf(by);
        // Each restarts the time: mostly it is let go by.
        if (unbonding != 0 && amount % 8 != 0) return;
        amount = bound(amount, 0, uint256(active) + active / 8);
        bytes memory data = abi.encodeCall(registry.startUnbond, (amount));
        if (_call(by, address(registry), 0, data, amount != 0 && amount <= active, "startUnbond")) {
            _unbondEnd[by] = block.timestamp + UNBONDING_PERIOD;
        }
    }

    function finishUnbond(uint256 n) external {
        address by = _nodes[n % NODES].addr;
        (uint128 active, uint128 unbonding,) = registry.stakeOf(by);
        (uint32 bonds,,,) = registry.recordOf(by);
        bool may = unbonding != 0 && block.timestamp >= _unbondEnd[by] && active >= bonds * BOND;
        if (_call(by, address(registry), 0, abi.encodeCall(registry.finishUnbond, ()), may, "finishUnbond")) {
            _unbonded += unbonding;
        }
    }

    /// @dev A registration with a stake and without; nobody registers twice.
    function register(uint256 seed) external {
        address by = address(uint160(bound(seed, 1 << 64, (1 << 64) + 8)));
        bytes32 id = bytes32(seed % 8 + 1);
        bool may = !registry.paused() && registry.nodeIdOf(by) == 0 && registry.nodeOf(id) == address(0);
        bytes memory data =
            abi.encodeCall(registry.register, (id, new bytes(32), by, 1, _operations(), "https://node.example"));
        _call(by, address(registry), 0, data, may, "register");
        if (registry.nodeIdOf(by) == 0) return;
        data = abi.encodeCall(registry.update, (new bytes(32), by, 2, _operations(), ""));
        _call(by, address(registry), 0, data, true, "update");
    }

    // ── The owner, and time ─────────────────────────────────────────────────────────────────────────────────────────

    /// @dev No call of the owner's lowers what anyone is owed.
    function own(uint256 what, uint256 value) external booked {
        uint256 t = value % TOKENS;
        uint256 owed = _owedIdle(t);
        uint256 fees = escrow.fees(_tokens[t]);
        if (what % 4 == 0) {
            _escrowCall(owner, abi.encodeCall(escrow.setFeeBps, (uint16(value % 520))), value % 520 <= 500, "setFeeBps");
        } else if (what % 4 == 1) {
            bytes memory data = abi.encodeCall(escrow.withdrawFees, (_tokens[t], owner));
            if (_escrowCall(owner, data, fees != 0, "withdrawFees")) {
                _out[_tokens[t]] += fees;
                owed -= fees;
            }
        } else if (what % 4 == 2) {
            // Mostly not, or nothing else would happen.
            _escrowCall(owner, abi.encodeCall(escrow.setPaused, (value % 5 == 0)), true, "setPaused");
            _call(owner, address(registry), 0, abi.encodeCall(registry.setPaused, (value % 7 == 0)), true, "setPaused");
        } else {
            uint128 minStake = uint128(value % 1.5 ether);
            _call(owner, address(registry), 0, abi.encodeCall(registry.setMinStake, (minStake)), true, "setMinStake");
        }
        assertEq(_owedIdle(t), owed, "the owner changed what is owed");
    }

    /// @dev Mostly hours, now and then weeks.
    function wait(uint256 time) external {
        skip(bound(time, 1, time % 12 == 0 ? 45 days : 1 days));
    }
}
